/* SPDX-License-Identifier: MIT */
/* verify: a snapshot's manifest and memory against their sums, its layers and
 * those below against what they were when they were frozen. Reads only. */
#include "memstate/verify.h"

#include <string.h>

#include "bases.h"
#include "job.h"
#include "layer_file.h"
#include "lock.h"
#include "name.h"
#include "preflight.h"
#include "session.h"

/* Operations follow each other that fast at most in a loop. */
#define TRIES 10

struct ver {
    struct qstill_store *store;
    struct qstill_job *job;
    struct arena arena;
    struct session s;
    bool session_open;
    const char *vm;
    const char *snap;
    struct verify *verify;
};

static int look(struct ver *v, struct qstill_error *err)
{
    struct manifest *m = NULL;
    CLEANUP(closep) int fd = -1, memfd = -1;
    struct verify_options o = {0};

    if (tree_resolve(&v->s.tree, v->snap, &m, err) < 0 ||
        manifest_check_sum(v->s.snapsfd, m, err) < 0)
        return err->code;
    for (size_t i = 0; i < m->disk_count; i++)
        if (layer_check(&m->disks[i], err) < 0) {
            err->code = QSTILL_E_CORRUPT;
            return err_wrap(err, "snapshot %s", m->name);
        }
    if (preflight_ancestry(&v->s, m, err) < 0) {
        if (err->code == QSTILL_E_NOT_FOUND)
            err->code = QSTILL_E_CORRUPT;
        return err_wrap(err, "snapshot %s", m->name);
    }
    if (bases_check_one(&v->s, m, false, err) == QSTILL_E_NOT_FOUND)
        err->code = QSTILL_E_CORRUPT;
    if (err->code < 0)
        return err->code;
    if (!m->memory_included)
        return 0;
    if (store_opendirat(v->s.snapsfd, m->id, &fd, err) < 0 ||
        store_opendirat(fd, STORE_MEMORY, &memfd, err) < 0) {
        err->code = QSTILL_E_CORRUPT;
        return err->code;
    }
    o.dirfd = memfd;
    return verify_open(&v->verify, &o, err);
}

/* Another qstill may be at work on the layers, and what was read before it
 * began is not what they are now. */
static int disks_enter(void *ctx, struct qstill_error *err)
{
    struct ver *v = ctx;
    struct lock_look before, after;

    if (session_open(&v->s, v->store, v->vm, NULL, err) < 0)
        return err->code;
    v->session_open = true;
    look(v, err);
    for (int tries = 0; err->code == QSTILL_E_CORRUPT && tries < TRIES;
         tries++) {
        err_clear(err);
        lock_look(v->s.vmfd, &before);
        if (session_reload(&v->s, err) == 0)
            look(v, err);
        lock_look(v->s.vmfd, &after);
        if (err->code != QSTILL_E_CORRUPT || lock_was_free(&before, &after))
            return err->code;
        if (lock_was_one(&before, &after))
            return lock_say_busy(v->s.vmfd, err);
    }
    return err->code == QSTILL_E_CORRUPT ? lock_say_busy(v->s.vmfd, err)
                                         : err->code;
}

static int memory_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct ver *v = ctx;
    struct verify_status st;

    *done = true;
    if (!v->verify)
        return 0;
    verify_poll(v->verify, &st);
    job_measure(v->job, st.bytes_done, st.bytes_total);
    *done = st.complete;
    if (!st.complete)
        return job_wait_on(v->job, verify_fd(v->verify), err);
    if (verify_finish(v->verify, err) < 0)
        return err_wrap(err, "snapshot %s", v->snap);
    return 0;
}

static void ver_free(void *ctx)
{
    struct ver *v = ctx;

    verify_close(v->verify);
    if (v->session_open)
        session_close(&v->s);
    arena_fini(&v->arena);
    free(v);
}

static const struct job_phase verify_phases[] = {
    {"disks", disks_enter, NULL, NULL},
    {"memory", NULL, memory_step, NULL},
    {NULL, NULL, NULL, NULL},
};
static const struct job_ops verify_ops = {verify_phases, ver_free};

QSTILL_PUBLIC int qstill_verify(struct qstill_store *store, const char *vm,
                                const char *snap, struct qstill_job **out,
                                struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct ver *v;

    if (name_check("VM name", vm, err) < 0 ||
        name_check("snapshot name", snap, err) < 0)
        return err->code;
    v = calloc(1, sizeof(*v));
    if (!v)
        return err_nomem(err);
    v->store = store;
    v->vm = arena_strdup(&v->arena, vm);
    v->snap = arena_strdup(&v->arena, snap);
    if (!v->vm || !v->snap) {
        ver_free(v);
        return err_nomem(err);
    }
    if (job_new(&v->job, &verify_ops, v, err) < 0)
        return err->code;
    *out = v->job;
    return 0;
}
