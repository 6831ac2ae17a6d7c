/* SPDX-License-Identifier: MIT */
/* What a revert will do: to which state, in which way. Changes nothing. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "headlock.h"
#include "heads.h"
#include "headuse.h"
#include "layer_name.h"
#include "plugged.h"
#include "preflight.h"
#include "qmp/monitor.h"
#include "ramfds.h"
#include "ready.h"
#include "quiesce.h"
#include "revert_impl.h"

static const char *const way_names[] = {"auto", "inplace", "mapped", "eager",
                                        "disk"};

const char *revert_way_name(enum way way)
{
    return way_names[way];
}

static void choose_state(struct revert *r, const struct manifest *m)
{
    r->state = r->o.state;
    if (r->state != QSTILL_STATE_DEFAULT)
        return;
    if (m->memory_included)
        r->state = strcmp(m->run_state, "paused") == 0 ? QSTILL_STATE_PAUSED
                                                       : QSTILL_STATE_RUNNING;
    else if (!r->was_on)
        r->state = QSTILL_STATE_STOPPED;
    else
        r->state = r->was_running || ready_has_halted(&r->s)
                       ? QSTILL_STATE_RUNNING
                       : QSTILL_STATE_PAUSED;
}

static const char *ram_path(struct revert *r, const char *id,
                            struct qstill_error *err)
{
    CLEANUP(freep) char *dir = realpath(r->store->dir, NULL);
    char name[RAMSET_NAME_SIZE];

    if (ramset_file_name(id, name, err) < 0)
        return NULL;
    return arena_printf(&r->arena,
                        "%s/%s/" STORE_SNAPSHOTS "/%s/" STORE_MEMORY "/%s",
                        dir ? dir : r->store->dir, r->vm, r->id, name);
}

int revert_fill_start(struct revert *r, const struct manifest *m,
                      struct start_options *o, struct qstill_error *err)
{
    struct start_head *heads =
        arena_array(&r->arena, m->disk_count + 1, sizeof(*heads));
    struct launch_ram *ram =
        arena_array(&r->arena, m->block_count + 1, sizeof(*ram));

    if (!heads || !ram)
        return err_nomem(err);
    memset(o, 0, sizeof(*o));
    for (size_t i = 0; i < m->disk_count; i++) {
        const struct vm_disk *d = vmrecord_disk(&r->s.rec, m->disks[i].name);

        heads[i].disk = d->name;
        if (layer_new_path(&r->s, d, NULL, r->tag, &heads[i].path, err) < 0)
            return err->code;
        heads[i].format = OVERLAY_FORMAT;
    }
    o->tag = r->tag;
    o->heads = heads;
    o->head_count = m->disk_count;
    o->incoming = r->way == WAY_MAPPED || r->way == WAY_EAGER;
    o->machine = o->incoming ? m->machine : NULL;
    o->paused = o->incoming || r->state == QSTILL_STATE_PAUSED;
    o->mapped_readonly = r->mapped_readonly;
    for (size_t i = 0; r->way == WAY_MAPPED && i < m->block_count; i++) {
        if (!m->blocks[i].main)
            continue;
        ram[o->mapped_count].id = m->blocks[i].id;
        ram[o->mapped_count].size = m->blocks[i].size;
        ram[o->mapped_count].path = ram_path(r, m->blocks[i].id, err);
        if (!ram[o->mapped_count++].path)
            return err->code < 0 ? err->code : err_nomem(err);
    }
    o->mapped = ram;
    return 0;
}

/* A new process takes no memory that was plugged into the old one. */
static int check_ram(struct revert *r, const struct manifest *m,
                     struct qstill_error *err)
{
    const char **ids = arena_array(&r->arena, m->block_count + 1, sizeof(*ids));
    const char *inplace = "";
    size_t n = 0;

    if (!ids)
        return err_nomem(err);
    for (size_t i = 0; i < m->block_count; i++)
        if (m->blocks[i].main)
            ids[n++] = m->blocks[i].id;
    if (launch_check_ram(&r->s.rec.launch, ids, n, err) == 0)
        return 0;
    if (r->was_on && r->wanted != WAY_AUTO)
        inplace = "use --restore inplace, or ";
    return err_hint(err,
                    "%sattach the VM with a --launcher CMD that starts it "
                    "with this memory, or start it so",
                    inplace);
}

static int cannot(const char *way, struct qstill_error *err)
{
    struct qstill_error why = *err;

    err_set(err, QSTILL_E_PRECONDITION, "restore %s cannot be used: %s", way,
            why.message);
    return err_hint(err, "use --restore auto");
}

/* While there still is a QEMU to lose. */
static int check_mapped(struct revert *r, const struct start_options *o,
                        struct qstill_error *err)
{
    if (r->way != WAY_MAPPED || ramfds_check(&r->s, o->mapped, o->mapped_count,
                                             r->mapped_readonly, err) == 0)
        return 0;
    return r->wanted == WAY_MAPPED ? cannot("mapped", err) : err->code;
}

/* `auto` falls back to eager when the command line, or anything else, allows no
 * mapping. */
static int check_start(struct revert *r, const struct manifest *m,
                       struct qstill_error *err)
{
    struct start_options o;

    if (r->state == QSTILL_STATE_STOPPED)
        return 0;
    if (preflight_foundation(&r->s, m, true, err) < 0 ||
        revert_fill_start(r, m, &o, err) < 0)
        return err->code;
    if (o.incoming && r->s.rec.has_launch && !r->s.rec.launcher &&
        (check_ram(r, m, err) < 0 || plugged_check(&r->s, m, err) < 0))
        return err->code;
    if (start_check(&r->s, &o, err) == 0 && check_mapped(r, &o, err) == 0)
        return 0;
    if (r->way != WAY_MAPPED || r->wanted != WAY_AUTO)
        return err->code;
    store_note(r->store, "restore mapped not taken: %s", err->message);
    r->way = WAY_EAGER;
    err->code = 0;
    if (revert_fill_start(r, m, &o, err) < 0)
        return err->code;
    return start_check(&r->s, &o, err);
}

/* With memory that is mapped from a file QEMU does not start with the one
 * capability (10.0), and would not take back the other. */
static bool starts_with_unmappable(const struct session *s)
{
    char *const *argv = s->rec.has_launch ? s->rec.launch.argv : NULL;

    while (argv && *argv && !strstr(*argv, "postcopy-ram") &&
           !strstr(*argv, "background-snapshot"))
        argv++;
    return argv && *argv;
}

/* The store is ours alone: a QEMU of another user cannot map its files. */
static bool mappable(struct revert *r, const struct manifest *m,
                     const char **why)
{
    if (!preflight_mappable(m, why))
        return false;
    if (starts_with_unmappable(&r->s)) {
        *why = "QEMU is started with a migration capability that is not for "
               "mapped memory (postcopy-ram, background-snapshot)";
        return false;
    }
    if (!r->s.rec.has_launch || r->s.rec.launch.uid == geteuid())
        return true;
    *why = "QEMU runs as another user, who may not open the saved RAM";
    return false;
}

static int heads_fit(struct revert *r, const struct manifest *m,
                     struct qstill_error *err)
{
    for (size_t i = 0; i < m->disk_count; i++) {
        const struct vm_disk *d = vmrecord_disk(&r->s.rec, m->disks[i].name);

        if (heads_check(&r->s, d, m->disks[i].virtual_size, err) < 0)
            return err->code;
    }
    return 0;
}

/* PRECONDITION: why the running process cannot be kept. */
static int fits_process(struct revert *r, const struct manifest *m,
                        struct qstill_error *err)
{
    bool before;

    if (!r->was_on)
        return err_set(err, QSTILL_E_PRECONDITION, "the VM is off");
    /* from here on it is looked for: revert_inplace.c */
    if (qmp_was_unplugged(r->s.qmp, &before, err) < 0)
        return err->code;
    if (heads_fit(r, m, err) < 0 ||
        inplace_check_unplug(&r->s, !r->was_running, err) < 0)
        return err->code;
    return r->way == WAY_DISK ? 0 : inplace_fits(&r->s, m, err);
}

/* Tries the running process; other errors than "does not fit" are errors. */
static int try_process(struct revert *r, const struct manifest *m,
                       struct qstill_error *err)
{
    r->in_process = fits_process(r, m, err) == 0;
    if (r->in_process)
        return 0;
    if (err->code != QSTILL_E_PRECONDITION &&
        err->code != QSTILL_E_PERMISSION && err->code != QSTILL_E_BUSY)
        return err->code;
    if (r->was_on)
        store_note(r->store, "restore in the running process not taken: %s",
                   err->message);
    return err_clear(err);
}

int revert_plan_process(struct revert *r, struct qstill_error *err)
{
    const struct manifest *m = tree_find(&r->s.tree, r->id);
    const char *why = NULL;

    r->in_process = false;
    if (r->way == WAY_DISK)
        return check_start(r, m, err);
    r->way = mappable(r, m, &why) ? WAY_MAPPED : WAY_EAGER;
    if (preflight_binary(&r->s, m, r->o.force, err) < 0 ||
        check_start(r, m, err) < 0)
        return err->code;
    return media_check(&r->s, &m->media, false, r->o.force, err);
}

static int choose_disk_way(struct revert *r, const struct manifest *m,
                           struct qstill_error *err)
{
    r->way = WAY_DISK;
    if (r->wanted != WAY_AUTO && !m->memory_included)
        return err_set(err, QSTILL_E_USAGE,
                       "snapshot %s has no memory to restore", m->name);
    return r->state == QSTILL_STATE_STOPPED ? 0 : try_process(r, m, err);
}

static int choose_way(struct revert *r, const struct manifest *m,
                      struct qstill_error *err)
{
    const char *why = NULL;
    bool can_map = mappable(r, m, &why);

    r->in_process = false;
    if (!m->memory_included || r->state == QSTILL_STATE_STOPPED)
        return choose_disk_way(r, m, err);
    r->way = WAY_INPLACE;
    if (r->wanted == WAY_INPLACE) {
        r->in_process = fits_process(r, m, err) == 0;
        return r->in_process ? 0 : cannot("inplace", err);
    }
    if (r->wanted == WAY_AUTO && (try_process(r, m, err) < 0 || r->in_process))
        return err->code;
    r->way =
        r->wanted == WAY_AUTO ? can_map ? WAY_MAPPED : WAY_EAGER : r->wanted;
    if (r->way == WAY_MAPPED && !can_map) {
        err_set(err, QSTILL_E_PRECONDITION, "restore mapped cannot be used: %s",
                why);
        return err_hint(err, "use --restore eager");
    }
    return 0;
}

/* The memory of a quiesced snapshot is that of a frozen guest, which somebody
 * must thaw when it runs. That today's guest does not answer says little of the
 * snapshot's: it may be what the revert is for. */
static int check_thaw(struct revert *r, const struct manifest *m,
                      struct qstill_error *err)
{
    const char *agent = r->s.rec.agent;
    struct qstill_error why = {0};

    if (!manifest_wakes_frozen(m) || r->way == WAY_DISK || r->o.force ||
        r->state != QSTILL_STATE_RUNNING)
        return 0;
    if (!quiesce_has_socket(&r->s)) {
        err_set(err, agent ? QSTILL_E_UNREACHABLE : QSTILL_E_PRECONDITION,
                "the guest of snapshot %s was captured frozen, and there is no "
                "guest agent socket %s%sto thaw it through",
                m->name, agent ? agent : "", agent ? " " : "");
        return err_hint(err, "use --force, and thaw it by hand (fsfreeze -u in "
                             "the guest)");
    }
    if (r->was_running && quiesce_reach(&r->s, &why) < 0)
        store_note(r->store,
                   "%s; the guest of %s was captured frozen, and stays so "
                   "until its agent answers",
                   why.message, m->name);
    return 0;
}

/* An administrator may have meant it. */
static int note_changed(struct revert *r, const struct manifest *m,
                        struct qstill_error *err)
{
    struct qstill_error why = {0};

    if (manifest_check_sum(r->s.snapsfd, m, &why) == 0)
        return 0;
    if (why.code != QSTILL_E_CORRUPT) {
        *err = why;
        return err->code;
    }
    store_note(r->store, "%s", why.message);
    return 0;
}

int revert_plan(struct revert *r, struct qstill_error *err)
{
    struct manifest *m = NULL;

    if (session_open_for(&r->s, r->store, r->vm, "revert", r->job, 0, err) < 0)
        return err->code;
    r->session_open = true;
    if (tree_resolve(&r->s.tree, r->snap, &m, err) < 0 ||
        note_changed(r, m, err) < 0 || session_connect(&r->s, err) < 0)
        return err->code;
    r->was_on = r->s.qmp != NULL;
    if (!r->was_on &&
        (headuse_check_frozen(&r->s, err) < 0 || headlock_take(&r->s, err) < 0))
        return err->code;
    r->was_running = r->was_on && r->s.status.running;
    snprintf(r->id, sizeof(r->id), "%s", m->id);
    choose_state(r, m);
    if (preflight(&r->s, m,
                  m->memory_included && r->state != QSTILL_STATE_STOPPED,
                  r->o.force, err) < 0)
        return err->code;
    if ((r->was_on && (ready_settled(&r->s, err) < 0 ||
                       session_check_heads(&r->s, err) < 0)) ||
        ready_store(&r->s, 0, err) < 0 ||
        ready_folders(&r->s, NULL, 0, err) < 0)
        return err->code;
    if (r->was_on && qmp_type_has_property(r->s.qmp, "memory-backend-file",
                                           "rom", &r->mapped_readonly, err) < 0)
        return err->code;
    if (choose_way(r, m, err) < 0 || check_thaw(r, m, err) < 0)
        return err->code;
    if (!r->in_process && ((r->way != WAY_DISK &&
                            preflight_binary(&r->s, m, r->o.force, err) < 0) ||
                           check_start(r, m, err) < 0))
        return err->code;
    return r->way == WAY_DISK
               ? 0
               : media_check(&r->s, &m->media, r->in_process, r->o.force, err);
}
