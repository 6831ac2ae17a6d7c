/* SPDX-License-Identifier: MIT */
/* Loading a snapshot's memory into a QEMU that waits for it. */
#include "revert_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/clock.h"
#include "job.h"
#include "qmp/migrate.h"
#include "qmp/monitor.h"
#include "qmp/ram.h"
#include "start.h"

#define STREAM_FD "qstill-incoming"
#define LOAD_STALL_MS                                                          \
    120000 /* a QEMU that takes nothing for so long is stuck */

int revert_open_set(struct revert *r, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1, memfd = -1;

    if (r->set)
        return 0;
    if (store_opendirat(r->s.snapsfd, r->id, &fd, err) < 0 ||
        store_opendirat(fd, STORE_MEMORY, &memfd, err) < 0)
        return err->code;
    return ramset_open(&r->set, memfd, err);
}

/* QEMU would end: its memory is what the file holds now. */
static bool is_readonly(const struct revert *r, const char *id)
{
    return r->s.rec.has_launch && launch_ram_is_readonly(&r->s.rec.launch, id);
}

bool revert_keeps_content(const struct revert *r)
{
    return r->way == WAY_EAGER && r->load_count > 0;
}

/* The blocks that the snapshot's guest calls its RAM: in `mapped`, those are
 * mapped instead of sent. */
static int fill_restore(struct revert *r, const struct manifest *m,
                        bool without_main, struct restore_options *o,
                        struct qstill_error *err)
{
    const char **mapped =
        arena_array(&r->arena, m->block_count + 1, sizeof(*mapped));

    if (!mapped)
        return err_nomem(err);
    *o = (struct restore_options){
        .set = r->set,
        .machine = m->machine,
        .pages = RESTORE_UNMAPPED,
        .zeros = RESTORE_SKIP_ZEROS,
        .mapped = mapped,
    };
    for (size_t i = 0; i < m->block_count; i++) {
        const struct manifest_block *b = &m->blocks[i];

        if (b->main && (without_main || is_readonly(r, b->id)))
            mapped[o->mapped_count++] = b->id;
    }
    return 0;
}

/* Of a block, by the name of its backend: ram0, /objects/ram0. */
static bool is_mapped(const struct restore_options *o, const char *backend)
{
    for (size_t i = 0; i < o->mapped_count; i++) {
        const char *slash = strrchr(o->mapped[i], '/');

        if (strcmp(slash ? slash + 1 : o->mapped[i], backend) == 0)
            return true;
    }
    return false;
}

/* A file may hold what an earlier VM left there, and a loader device has
 * written at the reset. The process that is loaded is asked: its memory may be
 * of another kind than the snapshot's was. */
static int choose_zeros(struct revert *r, struct restore_options *o,
                        struct qstill_error *err)
{
    CLEANUP(qmp_memdevs_fini) struct qmp_memdevs devs = QMP_MEMDEVS_INIT;
    CLEANUP(qmp_roms_fini) struct qmp_roms written = QMP_ROMS_INIT;

    if (qmp_memdevs_read(r->s.qmp, NULL, &devs, err) < 0 ||
        qmp_loaders_read(r->s.qmp, &written, err) < 0)
        return err->code;
    if (written.count > 0)
        o->zeros = RESTORE_SEND_ZEROS;
    for (size_t i = 0; i < devs.count; i++)
        if (strcmp(devs.items[i].type, "memory-backend-ram") != 0 &&
            !is_mapped(o, devs.items[i].id))
            o->zeros = RESTORE_SEND_ZEROS;
    return 0;
}

int revert_check_files(struct revert *r, struct qstill_error *err)
{
    const struct manifest *m = tree_find(&r->s.tree, r->id);
    struct restore_options o;

    if (revert_open_set(r, err) < 0 ||
        fill_restore(r, m, !revert_keeps_content(r), &o, err) < 0 ||
        restore_check(&o, err) < 0)
        return err_wrap(err, "the memory of snapshot %s", m->name);
    return 0;
}

static void tell_readonly(struct revert *r, const struct manifest *m)
{
    for (size_t i = 0; i < m->block_count; i++)
        if (m->blocks[i].main && is_readonly(r, m->blocks[i].id))
            store_note(r->store,
                       "RAM block %s is read-only: it has what its file holds "
                       "now",
                       m->blocks[i].id);
}

/* From here on they may be anything, whoever dies. */
static int journal_loads(struct revert *r, struct qstill_error *err)
{
    if (!revert_keeps_content(r))
        return 0;
    r->j.loads = r->loads;
    r->j.load_count = r->load_count;
    return journal_save(r->s.vmfd, &r->j, err);
}

/* A "-global migration.multifd=on" is the new process's, too, and with it our
 * stream could not be read. */
static int put_settings_aside(struct revert *r, struct qstill_error *err)
{
    if (settings_keep(&r->s, &r->was, err) < 0)
        return err->code;
    r->settings_saved = true;
    if (settings_enable(&r->s, &r->was, NULL, err) < 0)
        return err_wrap(err, "preparing QEMU's migration");
    return settings_clear_tls(&r->s, &r->was, err);
}

void revert_put_settings_back(struct revert *r)
{
    if (!r->settings_saved)
        return;
    r->settings_saved = false;
    if (r->s.qmp)
        settings_put_back(&r->s, &r->was);
    else
        settings_mend(&r->s); /* they went with the process */
}

int revert_load_enter(void *ctx, struct qstill_error *err)
{
    struct revert *r = ctx;
    const struct manifest *m = tree_find(&r->s.tree, r->id);
    CLEANUP(closep) int rfd = -1;
    struct restore_options o;
    int fds[2];

    if (r->o.dry_run || !r->started || r->way == WAY_DISK)
        return 0;
    if (revert_open_set(r, err) < 0 ||
        fill_restore(r, m, r->way == WAY_MAPPED, &o, err) < 0 ||
        choose_zeros(r, &o, err) < 0)
        return err->code;
    tell_readonly(r, m);
    if (put_settings_aside(r, err) < 0)
        return revert_say_how(r, err);
    if (journal_loads(r, err) < 0)
        return err->code;
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_errno(err, errno, "no pipe");
    rfd = fds[0];
    if (qmp_getfd(r->s.qmp, STREAM_FD, rfd, err) < 0 ||
        qmp_migrate_incoming(r->s.qmp, STREAM_FD, err) < 0) {
        close(fds[1]);
        return err->code;
    }
    return restore_open(&r->restore, fds[1], &o, err);
}

static int load_failed(struct revert *r, const char *why,
                       struct qstill_error *err)
{
    struct restore_result ignored;
    struct restore_status st;
    char words[300];

    /* Our side knows best when a file is damaged. */
    restore_poll(r->restore, &st);
    if (st.complete && restore_finish(r->restore, &ignored, err) < 0 &&
        err->code != QSTILL_E_UNREACHABLE) {
        err_wrap(err, "loading the memory");
        return revert_say_how(r, err);
    }
    start_last_words(&r->s, words, sizeof(words));
    err_set(err, QSTILL_E_FAILED, "QEMU did not take the memory: %s%s%s", why,
            words[0] ? ": " : "", words);
    return revert_say_how(r, err);
}

static int load_state(struct revert *r, bool *done, struct qstill_error *err)
{
    CLEANUP(qmp_migration_fini) struct qmp_migration m = QMP_MIGRATION_INIT;
    struct restore_result result;
    struct restore_status st;

    if (qmp_migration_read(r->s.qmp, &m, err) < 0)
        return err->code == QSTILL_E_UNREACHABLE
                   ? load_failed(r, "it ended", err)
                   : err->code;
    if (m.state == QMP_MIGRATION_FAILED || m.state == QMP_MIGRATION_CANCELLED)
        return load_failed(r, m.error && *m.error ? m.error : m.status, err);
    /* QEMU may have read the last byte before our side knows that it is
     * written: then the next step ends it. */
    restore_poll(r->restore, &st);
    *done = m.state == QMP_MIGRATION_COMPLETED && st.complete;
    if (*done)
        return restore_finish(r->restore, &result, err);
    if (st.bytes_done != r->loaded || !r->loaded_ms) {
        r->loaded = st.bytes_done;
        r->loaded_ms = clock_ms();
    }
    return clock_ms() - r->loaded_ms > LOAD_STALL_MS
               ? load_failed(r, "it takes no more of it", err)
               : 0;
}

/* A damaged file ends the stream early. QEMU may take its time to notice. */
static bool sender_failed(struct revert *r, struct qstill_error *err)
{
    struct restore_result ignored;
    struct qstill_error why = {0};

    if (restore_finish(r->restore, &ignored, &why) == 0 ||
        why.code == QSTILL_E_UNREACHABLE)
        return false;
    *err = why;
    err_wrap(err, "loading the memory");
    revert_say_how(r, err);
    return true;
}

int revert_load_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct revert *r = ctx;
    struct restore_status st;

    *done = true;
    if (!r->restore)
        return 0;
    restore_poll(r->restore, &st);
    if (st.complete && sender_failed(r, err))
        return err->code;
    job_measure(r->job, st.bytes_done, st.bytes_total);
    if (load_state(r, done, err) < 0)
        return err->code;
    if (*done) {
        revert_put_settings_back(r);
        revert_lap(r, "load");
    } else
        clock_sleep_ms(st.complete ? 1 : 3);
    return 0;
}
