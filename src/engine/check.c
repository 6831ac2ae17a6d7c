/* SPDX-License-Identifier: MIT */
/*
 * check: what would hinder a snapshot or its revert, found without changing
 * anything. Each problem has a stable code, the fact, and the fix.
 */
#include "check_impl.h"

#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/options.h"
#include "headlock.h"
#include "headuse.h"
#include "hostinfo.h"
#include "inplace.h"
#include "journal.h"
#include "lock.h"
#include "modes.h"
#include "nvdimm.h"
#include "plugged.h"
#include "preflight.h"
#include "qmp/hazards.h"
#include "qmp/machine.h"
#include "qmp/ram.h"
#include "quiesce.h"
#include "ready.h"
#include "session.h"
#include "start.h"
#include "thaw.h"
#include "tsc_fix.h"

/* Operations follow each other that fast at most in a loop. */
#define TRIES 5

void problem(struct report_obj *o, const char *code, const char *message,
             const char *hint)
{
    struct qstill_problem *p;

    for (size_t i = 0; i < o->report.problem_count; i++)
        if (strcmp(o->problems[i].message, message) == 0)
            return;
    if (o->report.problem_count >= PROBLEMS_MAX)
        return;
    p = &o->problems[o->report.problem_count++];
    p->code = arena_strdup(&o->arena, code);
    p->message = arena_strdup(&o->arena, message);
    p->hint = arena_strdup(&o->arena, hint);
    if (!p->code || !p->message || !p->hint)
        *p = (struct qstill_problem){"out-of-memory", "out of memory", ""};
}

void problem_of(struct report_obj *o, const char *code, struct qstill_error *e)
{
    if (e->code < 0)
        problem(o, code, e->message, e->hint);
    e->code = 0;
    e->hint[0] = '\0';
}

/* That a medium is in a drive is enough for the running process. */
static void check_media(struct report_obj *o, struct session *s)
{
    struct qstill_error e = {0};

    for (size_t i = 0; i < s->tree.count; i++) {
        const struct manifest *m = &s->tree.nodes[i];

        if (media_check(s, &m->media, s->qmp != NULL, false, &e) < 0) {
            err_wrap(&e, "snapshot %s", m->name);
            problem_of(
                o, e.code == QSTILL_E_BUSY ? "medium-busy" : "medium-missing",
                &e);
        }
    }
}

static void tell_machine(void *user, struct qstill_error *why)
{
    problem_of(user, "machine-changed", why);
}

/* The way round invtsc for whoever has no right to capture from outside. */
static void explain_invtsc(struct report_obj *o, struct session *s,
                           const struct mode_report *r)
{
    CLEANUP(qmp_cpus_fini) struct qmp_cpus cpus = QMP_CPUS_INIT;
    struct hostinfo host = {0};
    struct qstill_error e = {0};
    char argument[256], hint[640];

    qmp_cpus_read(s->qmp, &cpus, &e);
    hostinfo_read(&host, &e);
    tsc_fix_argument(argument, sizeof(argument),
                     s->rec.has_launch ? &s->rec.launch : NULL,
                     cpus.tsc_frequency, host.tsc_khz);
    snprintf(hint, sizeof(hint),
             "start the VM with %s (QEMU then migrates it), or run qstill "
             "with the right to trace QEMU (mode cow: %s)",
             argument, r->reason[MODE_COW]);
    problem(o, "invtsc", r->blocked, hint);
}

/* Zero pages and what balloons have given back take no room: nobody knows
 * before, so it hinders nothing. */
static void note_room(struct session *s)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;
    struct qstill_error ignored = {0};
    uint64_t need = 0, room;
    struct statvfs fs;

    if (qmp_ram_read(s->qmp, &ram, &ignored) < 0 || fstatvfs(s->vmfd, &fs) < 0)
        return;
    room = (uint64_t)fs.f_bavail * fs.f_frsize;
    for (size_t i = 0; i < ram.count; i++)
        need += *ram.blocks[i].name ? ram.blocks[i].used : 0;
    if (room < need)
        store_note(s->store,
                   "the store has %llu MiB left, VM %s has %llu MiB of RAM: a "
                   "snapshot with memory fits only if enough of it is zero",
                   (unsigned long long)room >> 20, s->vm,
                   (unsigned long long)need >> 20);
}

static int check_modes(struct report_obj *o, struct session *s,
                       const struct qstill_check_options *options,
                       struct qstill_error *err)
{
    struct qstill_error e = {0};
    struct mode_report r;
    bool any = false;

    if (modes_probe(s, &r, err) < 0)
        return err->code;
    for (unsigned m = 0; m < MODE_COUNT; m++) {
        o->modes[m].mode = mode_name((enum mode)m);
        if (!r.reason[m][0])
            any = true;
        else
            o->modes[m].reason = arena_strdup(&o->arena, r.reason[m]);
    }
    o->report.mode_count = MODE_COUNT;
    if (!options->memory) {
        modes_note_pmem(s);
        nvdimm_note(s, NVDIMM_NO_MEMORY);
        return 0;
    }
    note_room(s);
    if (preflight_plugged(s, &e) < 0)
        problem_of(o, "plugged-memory", &e);
    else if (plugged_check_now(s, &e) < 0)
        problem_of(o, "plugged-device", &e);
    if (plugged_check_taken_out(s, &e) < 0)
        problem_of(o, "unplugged-device", &e);
    if (r.refused[0])
        problem(o, r.refused_code, r.refused, r.refused_hint);
    else if (!any)
        problem(o, "no-capture-mode", "no capture mode can be used",
                "see captureModes for the reason of each");
    if (!any && !r.refused[0] && tsc_fix_is_needed(r.blocked))
        explain_invtsc(o, s, &r);
    return 0;
}

/* QEMU cannot punch holes into the snapshot's file, and says so of each page.
 */
static void note_balloon(struct session *s)
{
    struct qstill_error ignored = {0};
    struct qmp_hazards h;

    if (qmp_hazards_read(s->qmp, &h, &ignored) == 0 && h.balloon[0])
        store_note(s->store,
                   "%s gives nothing back of mapped memory, and QEMU writes a "
                   "line into its log for each page: unplug it, or revert with "
                   "--restore eager",
                   h.balloon);
}

/* NVRAM (pflash) is a disk like any other; a TPM is not. */
static void name_tpm(struct session *s)
{
    if (s->rec.has_launch && launch_has_tpm(&s->rec.launch))
        store_note(s->store,
                   "the TPM of VM %s is no part of a snapshot without memory, "
                   "and what it has stored (keys, counters) of none: the "
                   "program behind -tpmdev keeps that",
                   s->vm);
}

/* Also as it will be once there is a snapshot: a command line may start the VM
 * on its first images, and have no place for others. */
static void check_start(struct report_obj *o, struct session *s)
{
    struct start_options so = {0};
    struct qstill_error e = {0};

    if (!s->store->launch)
        return;
    if (start_check(s, &so, &e) < 0)
        problem_of(o, "not-startable", &e);
    else if (start_check_overlays(s, &e) < 0)
        problem_of(o, "not-startable", &e);
}

/* As a revert sees it. */
static void check_thawable(struct report_obj *o, const struct session *s)
{
    bool any = false;

    for (size_t i = 0; i < s->tree.count; i++)
        any = any || manifest_wakes_frozen(&s->tree.nodes[i]);
    if (any && !quiesce_has_socket(s))
        problem(o, "agent",
                "the guest of a snapshot was captured frozen, and there is no "
                "guest agent socket to thaw it through after a revert",
                "see what has become of the agent's socket; a revert needs "
                "--force without it");
}

/* As a create sees it, which leaves a paused VM as it is. */
static void check_agent(struct report_obj *o, struct session *s,
                        const struct qstill_check_options *options)
{
    bool paused = session_vm_is_paused(s);
    struct qstill_error e = {0};

    if (options->quiesce && paused)
        store_note(s->store, "VM %s is paused: it is not quiesced", s->vm);
    if (options->quiesce && !paused && quiesce_check(s, &e) < 0)
        problem_of(o, "agent", &e);
    else
        check_thawable(o, s);
}

static int check_live(struct report_obj *o, struct session *s,
                      const struct qstill_check_options *options,
                      struct qstill_error *err)
{
    struct qstill_error e = {0};

    if (ready_state(s, options->memory, &e) < 0)
        problem_of(o, "vm-state", &e);
    if (ready_settled(s, &e) < 0)
        problem_of(o, "migrating", &e);
    if (ready_jobs(s, &e) < 0)
        problem_of(o, "block-job", &e);
    if (session_check_heads(s, &e) < 0)
        problem_of(o, "wrong-head", &e);
    if (session_check_known(s, &e) < 0)
        problem_of(o, "unknown-disk", &e);
    if (session_check_names(s, &e) < 0)
        problem_of(o, "image-name", &e);
    if (inplace_check_unplug(s, !s->status.running, &e) < 0)
        problem_of(o, "unplug-pending", &e);
    if (s->rec.mapped) {
        store_note(s->store,
                   "the RAM of VM %s is a mapping of snapshot %s: modes cow "
                   "and background cannot be used until it is started anew",
                   s->vm, s->rec.mapped);
        note_balloon(s);
    }
    check_agent(o, s, options);
    return check_modes(o, s, options, err);
}

/* No process is left that could take its memory back. */
static void check_devices(struct report_obj *o, struct session *s)
{
    struct qstill_error e = {0};

    for (size_t i = 0; i < s->tree.count; i++) {
        const struct manifest *m = &s->tree.nodes[i];

        if (m->memory_included && plugged_check(s, m, &e) < 0) {
            err_wrap(&e, "snapshot %s", m->name);
            problem_of(o, "other-devices", &e);
        }
    }
}

static void check_off(struct report_obj *o, struct session *s,
                      const struct qstill_check_options *options)
{
    struct qstill_error e = {0};

    for (unsigned m = 0; m < MODE_COUNT; m++) {
        o->modes[m].mode = mode_name((enum mode)m);
        o->modes[m].reason = "the VM does not run";
    }
    o->report.mode_count = MODE_COUNT;
    check_devices(o, s);
    if (headlock_look(s, &e) < 0)
        problem_of(o, "head-in-use", &e);
    else if (headuse_check(s, &e) < 0)
        problem_of(o, "head-shared", &e);
    else if (options->memory || options->quiesce)
        problem(o, "not-running", "the VM does not run",
                "start it with qstill start");
}

static int check_all(struct report_obj *o, struct session *s,
                     const struct qstill_check_options *options,
                     struct qstill_error *err)
{
    struct qstill_error e = {0};

    if (journal_exists(s->vmfd))
        problem(o, "interrupted",
                "an operation was interrupted, or is under way",
                "qstill recover finishes or undoes it");
    check_store(o, s);
    if (session_try(s, err) < 0 || check_bases(o, s, err) < 0)
        return err->code;
    check_start(o, s);
    if (thaw_check(s, &e) < 0)
        problem_of(o, "frozen", &e);
    name_tpm(s);
    if (check_shared(o, s, err) < 0 ||
        preflight_foresee(s, tell_machine, o, err) < 0)
        return err->code;
    check_media(o, s);
    if (session_check_shapes(s, &e) < 0)
        problem_of(o, "image-shape", &e);
    if (!s->qmp) {
        check_off(o, s, options);
        return 0;
    }
    return check_live(o, s, options, err);
}

static int look(struct session *s, const struct qstill_check_options *options,
                struct report_obj **out, struct qstill_error *err)
{
    struct report_obj *o = calloc(1, sizeof(*o));

    *out = NULL;
    if (!o)
        return err_nomem(err);
    if (session_reload(s, err) < 0 || check_all(o, s, options, err) < 0)
        qstill_check_report_free(&o->report);
    else
        *out = o;
    return err->code;
}

/* What another qstill is at work on may look damaged. */
static int look_in_peace(struct session *s,
                         const struct qstill_check_options *options,
                         struct report_obj **out, struct qstill_error *err)
{
    struct lock_look before, after;

    for (int tries = 0;; tries++) {
        lock_look(s->vmfd, &before);
        if (look(s, options, out, err) == 0 &&
            (*out)->report.problem_count == 0)
            return 0;
        lock_look(s->vmfd, &after);
        if (lock_was_free(&before, &after))
            return err->code;
        if (*out)
            qstill_check_report_free(&(*out)->report);
        *out = NULL;
        err_clear(err);
        session_disconnect(s);
        if (tries == TRIES || lock_was_one(&before, &after))
            return lock_say_busy(s->vmfd, err);
    }
}

QSTILL_PUBLIC int qstill_check(struct qstill_store *store, const char *vm,
                               const struct qstill_check_options *options,
                               struct qstill_check_report **out,
                               struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct qstill_check_options want;
    struct report_obj *o = NULL;
    struct session s;

    if (options_take(&want, sizeof(want), options, "check", err) < 0 ||
        session_open(&s, store, vm, NULL, err) < 0)
        return err->code;
    look_in_peace(&s, &want, &o, err);
    session_close(&s);
    if (err->code < 0)
        return err->code;
    o->report.ok = o->report.problem_count == 0;
    o->report.problems = o->problems;
    o->report.modes = o->modes;
    *out = &o->report;
    return 0;
}

QSTILL_PUBLIC void qstill_check_report_free(struct qstill_check_report *report)
{
    struct report_obj *o = (struct report_obj *)report;

    if (!o)
        return;
    arena_fini(&o->arena);
    free(o);
}
