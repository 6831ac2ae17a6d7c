/* SPDX-License-Identifier: MIT */
/*
 * accept: layers that somebody else wrote to, or put in the place of the
 * frozen ones, are the snapshots' from now on, as they are.
 *   of those listed       their manifests
 *   hidden, in the trash  vm.json
 * All of them are looked at first: what is no such image at all (a link, one
 * that cannot be read) ends it before anything is written. May run twice.
 */
#include <string.h>

#include "base/clock.h"
#include "job.h"
#include "layer_file.h"
#include "name.h"
#include "protect.h"
#include "session.h"

struct accept {
    struct qstill_store *store;
    struct qstill_job *job;
    char *vm;
    bool dry_run;
    struct session s;
    bool record; /* vm.json has changed */
};

static void say(struct accept *a, const char *path,
                const struct qstill_error *why)
{
    buf_printf(job_text(a->job), "VM %s: %s %s as it is: %s\n", a->vm, path,
               a->dry_run ? "will be taken" : "is taken", why->message);
}

/* One that is gone is none that could be taken. */
static int accept_named(struct accept *a, struct manifest *m, bool *changed,
                        struct qstill_error *err)
{
    for (size_t i = 0; i < m->disk_count; i++) {
        struct manifest_disk *d = &m->disks[i];
        struct qstill_error why = {0};

        if (layer_check(d, &why) != QSTILL_E_CORRUPT)
            continue;
        if (layer_identify(m, d, err) < 0 || layer_check(d, err) < 0)
            return err_wrap(err, "snapshot %s", m->name);
        err_wrap(&why, "snapshot %s", m->name);
        say(a, d->path, &why);
        *changed = true;
    }
    return 0;
}

static int accept_unnamed(struct accept *a, struct vm_hidden *h,
                          int (*check)(const struct session *,
                                       const struct vm_hidden *,
                                       struct qstill_error *),
                          struct qstill_error *err)
{
    struct qstill_error why = {0};

    if (check(&a->s, h, &why) != QSTILL_E_CORRUPT)
        return 0;
    if (layer_identify_hidden(&a->s.rec, h, err) < 0 ||
        check(&a->s, h, err) < 0)
        return err->code;
    say(a, h->path, &why);
    a->record = true;
    return 0;
}

static int accept_record(struct accept *a, struct qstill_error *err)
{
    struct vm_record *rec = &a->s.rec;

    for (size_t i = 0; i < rec->hidden_count; i++)
        if (accept_unnamed(a, &rec->hidden[i], layer_check_hidden, err) < 0)
            return err->code;
    for (size_t i = 0; i < rec->trash_count; i++)
        for (size_t k = 0; k < rec->trash[i].layer_count; k++)
            if (accept_unnamed(a, &rec->trash[i].layers[k], layer_check_trash,
                               err) < 0)
                return err->code;
    return 0;
}

/* Before all: what other VMs' snapshots of until now stand on is no more what
 * the records say that it is (base_owners.h). */
static int save_record(struct accept *a, const bool *changed,
                       struct qstill_error *err)
{
    char stamp[CLOCK_STAMP_LEN];
    bool any = a->record;

    for (size_t i = 0; i < a->s.tree.count; i++)
        any |= changed[i];
    if (!any)
        return 0;
    clock_stamp(stamp, &a->s.rec.accepted_ns);
    return vmrecord_save(a->s.vmfd, &a->s.rec, err);
}

static int save(struct accept *a, const bool *changed, struct qstill_error *err)
{
    struct session *s = &a->s;

    if (save_record(a, changed, err) < 0)
        return err->code;
    for (size_t i = 0; i < s->tree.count; i++) {
        CLEANUP(closep) int fd = -1;

        if (changed[i] &&
            (store_opendirat(s->snapsfd, s->tree.nodes[i].id, &fd, err) < 0 ||
             manifest_save(fd, &s->tree.nodes[i], s->vmfd, err) < 0))
            return err->code;
    }
    protect_all(s);
    return 0;
}

static int accept_all(struct accept *a, struct qstill_error *err)
{
    CLEANUP(freep) bool *changed = calloc(a->s.tree.count + 1, sizeof(bool));

    if (!changed)
        return err_nomem(err);
    for (size_t i = 0; i < a->s.tree.count; i++)
        if (accept_named(a, &a->s.tree.nodes[i], &changed[i], err) < 0)
            return err->code;
    if (accept_record(a, err) < 0 || a->dry_run)
        return err->code;
    return save(a, changed, err);
}

static int accept_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct accept *a = ctx;

    *done = true;
    if (session_open_for(&a->s, a->store, a->vm, a->dry_run ? NULL : "recover",
                         a->job, 0, err) < 0)
        return err->code;
    accept_all(a, err);
    session_close(&a->s);
    return err->code;
}

static void accept_free(void *ctx)
{
    struct accept *a = ctx;

    free(a->vm);
    free(a);
}

static const struct job_phase accept_phases[] = {
    {"accept", NULL, accept_step, NULL},
    {NULL, NULL, NULL, NULL},
};
static const struct job_ops accept_ops = {accept_phases, accept_free};

QSTILL_PUBLIC int qstill_accept(struct qstill_store *store, const char *vm,
                                bool dry_run, struct qstill_job **out,
                                struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct accept *a;

    if (name_check("VM name", vm, err) < 0)
        return err->code;
    a = calloc(1, sizeof(*a));
    if (!a)
        return err_nomem(err);
    a->store = store;
    a->dry_run = dry_run;
    a->vm = strdup(vm);
    if (!a->vm) {
        accept_free(a);
        return err_nomem(err);
    }
    if (job_new(&a->job, &accept_ops, a, err) < 0)
        return err->code;
    *out = a->job;
    return 0;
}
