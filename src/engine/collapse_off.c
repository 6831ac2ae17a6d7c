/* SPDX-License-Identifier: MIT */
/* Merges of layers that no QEMU has open, with our own engine. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "collapse_impl.h"
#include "job.h"
#include "layer_file.h"
#include "qcow2/merge.h"

/* ------------------------------------------------------------- what follows
 */

static int reidentify_hidden(struct session *s, const char *path,
                             struct qstill_error *err)
{
    for (size_t i = 0; i < s->rec.hidden_count; i++)
        if (strcmp(s->rec.hidden[i].path, path) == 0)
            return layer_identify_hidden(&s->rec, &s->rec.hidden[i], err) < 0
                       ? err->code
                       : vmrecord_save(s->vmfd, &s->rec, err);
    return 0;
}

int collapse_reidentify(struct session *s, const char *path,
                        struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct manifest *m = tree_owner(&s->tree, path);

    if (!m)
        return reidentify_hidden(s, path, err);
    for (size_t i = 0; i < m->disk_count; i++)
        if (strcmp(m->disks[i].path, path) == 0 &&
            layer_identify(m, &m->disks[i], err) < 0)
            return err->code;
    if (store_opendirat(s->snapsfd, m->id, &fd, err) < 0)
        return err->code;
    return manifest_save(fd, m, s->vmfd, err);
}

int collapse_move_layer(struct session *s, const char *from, const char *to,
                        const char *format, struct qstill_error *err)
{
    struct manifest *m = tree_owner(&s->tree, from);

    for (size_t i = 0; m && i < m->disk_count; i++) {
        if (strcmp(m->disks[i].path, from) != 0)
            continue;
        m->disks[i].path = arena_strdup(&m->arena, to);
        m->disks[i].format = arena_strdup(&m->arena, format);
        if (!m->disks[i].path || !m->disks[i].format)
            return err_nomem(err);
    }
    return collapse_reidentify(s, to, err);
}

int collapse_forget(struct session *s, const char *path,
                    struct qstill_error *err)
{
    vmrecord_unhide(&s->rec, path);
    return vmrecord_save(s->vmfd, &s->rec, err);
}

/* ------------------------------------------------------------------ requests
 */

static bool in_run(const struct step *st, const struct layer *l)
{
    for (const struct layer *x = st->first;; x = x->below) {
        if (x == l)
            return true;
        if (x == st->last)
            return false;
    }
}

/* Whoever else names a layer that changes its name or goes. */
static bool concerns(const struct step *st, const struct layer *l)
{
    if (l == st->child || !l->below || l->missing)
        return false;
    if ((st->kind == STEP_LOWER || st->kind == STEP_FOLD) &&
        l->below == st->child)
        return true;
    return in_run(st, l->below) && !in_run(st, l);
}

int collapse_request(struct collapse *c, const struct step *st,
                     struct merge_request *r, struct qstill_error *err)
{
    struct arena *a = &c->s->rec.arena;
    const char **drop, **children;
    size_t n = 1;

    for (const struct layer *l = st->first; l != st->last; l = l->below)
        n++;
    drop = arena_array(a, n + 1, sizeof(*drop));
    children = arena_array(a, c->all.count + 1, sizeof(*children));
    if (!drop || !children)
        return err_nomem(err);
    for (const struct layer *l = st->first;; l = l->below) {
        drop[r->drop_count++] = l->path;
        if (l == st->last)
            break;
    }
    for (size_t i = 0; st->kind != STEP_TAKE && i < c->all.count; i++)
        if (concerns(st, &c->all.items[i]))
            children[r->child_count++] = c->all.items[i].path;
    r->top = st->child->path;
    r->drop = drop;
    r->children = children;
    r->keep_dropped = st->kind == STEP_TAKE;
    r->lower_name = st->kind == STEP_LOWER || st->kind == STEP_FOLD;
    r->bwlimit = c->s->bwlimit;
    r->gentle = c->s->qmp != NULL;
    /* its QEMU, whoever it runs as, had all of the chain open, or got it open:
     * the guest sees what it holds */
    r->below_is_theirs = true;
    r->seen = c->seen;
    r->stop = job_stop(c->s->job);
    r->journal_dir = c->s->vmfd;
    r->journal_name = LAYERS_MERGE_JOURNAL;
    return 0;
}

static int run_failed(struct collapse *c, const struct qstill_error *err)
{
    c->no_room = err->code == QSTILL_E_NO_SPACE;
    return err->code;
}

int collapse_run(struct collapse *c, const struct merge_request *request,
                 struct qstill_error *err)
{
    CLEANUP(merge_closep) struct merge *m = NULL;
    bool done = false;

    if (merge_open(&m, io_real(), request, err) < 0)
        return run_failed(c, err);
    c->wanted = merge_estimate(m)->bytes - merge_estimate(m)->shared +
                merge_estimate(m)->needed;
    while (!done) {
        struct pollfd p = {.events = POLLIN};

        if (merge_step(m, &done, err) < 0)
            return run_failed(c, err);
        if (!done && !merge_is_late(m) &&
            job_pulse(c->s->job, merge_count(m).done, merge_estimate(m)->bytes,
                      err) < 0)
            return err->code;
        p.fd = done ? -1 : merge_fd(m);
        if (p.fd >= 0)
            poll(&p, 1, 100);
    }
    return 0;
}

/* ------------------------------------------------------------------ the work
 */

static int note_rewrites(struct collapse *c, const struct merge_request *r,
                         struct qstill_error *err)
{
    struct journal *j = c->j;
    size_t n = r->child_count;

    j->rewrites = arena_array(&c->s->rec.arena, n + 2, sizeof(char *));
    if (!j->rewrites)
        return err_nomem(err);
    j->rewrite_count = 0;
    j->rewrites[j->rewrite_count++] = (char *)(uintptr_t)r->top;
    for (size_t i = 0; i < n; i++)
        j->rewrites[j->rewrite_count++] = (char *)(uintptr_t)r->children[i];
    return 0;
}

static int follow_rewrites(struct session *s, struct journal *j,
                           struct qstill_error *err)
{
    for (size_t i = 0; i < j->rewrite_count; i++)
        if (access(j->rewrites[i], F_OK) == 0 &&
            collapse_reidentify(s, j->rewrites[i], err) < 0)
            return err->code;
    if (j->rewriting && access(j->rewriting, F_OK) == 0 &&
        collapse_reidentify(s, j->rewriting, err) < 0)
        return err->code;
    j->rewrite_count = 0;
    j->rewriting = NULL;
    return 0;
}

/* The layer that was merged into the first image is gone: it is that now. */
static int follow_lowering(struct session *s, struct journal *j,
                           struct qstill_error *err)
{
    if (j->lowering && j->lowered && j->lowered_format &&
        access(j->lowering, F_OK) < 0 && errno == ENOENT &&
        access(j->lowered, F_OK) == 0) {
        if (collapse_move_layer(s, j->lowering, j->lowered, j->lowered_format,
                                err) < 0 ||
            collapse_forget(s, j->lowered, err) < 0)
            return err->code;
    }
    j->lowering = j->lowered = j->lowered_format = NULL;
    return 0;
}

static int follow_fold(struct collapse *c, const struct step *st,
                       struct qstill_error *err)
{
    struct session *s = c->s;
    struct vm_disk *d = vmrecord_disk(&s->rec, st->first->disk);

    if (!d || vmrecord_set_head(&s->rec, d->name, st->last->path,
                                st->last->format, err) < 0)
        return err->code;
    journal_forget_pivot(c->j);
    return 0;
}

static void note_step(struct collapse *c, const struct step *st)
{
    struct journal *j = c->j;

    if (st->kind == STEP_LOWER) {
        j->lowering = st->child->path;
        j->lowered = st->last->path;
        j->lowered_format = st->last->format;
    }
    if (st->kind == STEP_FOLD) {
        j->pivot_disk = st->first->disk;
        j->pivot_from = st->child->path;
        j->pivot_to = st->last->path;
        j->pivot_to_format = st->last->format;
    }
}

static void forget_step(struct journal *j)
{
    j->rewrite_count = 0;
    j->lowering = j->lowered = j->lowered_format = NULL;
    journal_forget_pivot(j);
}

static bool all_there(const struct merge_request *r)
{
    for (size_t i = 0; i < r->drop_count; i++)
        if (access(r->drop[i], F_OK) < 0)
            return false;
    return access(r->top, F_OK) == 0;
}

/* What a merge could not undo, it leaves to this. A fold that was cancelled, or
 * has no room, need not go on: nobody sees a hidden layer by itself. Without
 * room all is as it was before the step, or the next command goes on. */
static void settle_failed(struct collapse *c, const struct merge_request *r,
                          int why)
{
    struct merge_recovery how = {.told = c->text};
    bool did, leave = why == QSTILL_E_CANCELLED || why == QSTILL_E_NO_SPACE;
    struct qstill_error second = {0};

    if ((leave ? merge_abandon(io_real(), c->s->vmfd, LAYERS_MERGE_JOURNAL,
                               &did, &second)
               : merge_recover(io_real(), c->s->vmfd, LAYERS_MERGE_JOURNAL,
                               &how, &did, &second)) < 0) {
        c->no_room = false;
        return;
    }
    if (did && !c->no_room) { /* a cancelled one is layers_settle()'s */
        if (!leave && follow_lowering(c->s, c->j, &second) == 0)
            follow_rewrites(c->s, c->j, &second);
        return;
    }
    /* what it has undone reads as before, and has another time */
    if ((c->no_room && !all_there(r)) ||
        follow_rewrites(c->s, c->j, &second) < 0)
        c->no_room = false;
    else
        forget_step(c->j);
}

int collapse_off(struct collapse *c, const struct step *st,
                 struct qstill_error *err)
{
    struct merge_request r = MERGE_REQUEST_INIT;
    struct session *s = c->s;

    if (collapse_request(c, st, &r, err) < 0 || note_rewrites(c, &r, err) < 0)
        return err->code;
    note_step(c, st);
    if (journal_save(s->vmfd, c->j, err) < 0 || collapse_run(c, &r, err) < 0) {
        settle_failed(c, &r, err->code);
        return err->code;
    }
    if ((st->kind == STEP_FOLD && follow_fold(c, st, err) < 0) ||
        follow_lowering(s, c->j, err) < 0 || follow_rewrites(s, c->j, err) < 0)
        return err->code;
    for (const struct layer *l = st->first; st->kind != STEP_TAKE;
         l = l->below) {
        vmrecord_unhide(&s->rec, l->path);
        if (l == st->last)
            break;
    }
    if (c->text)
        buf_printf(c->text, "merged %s and %s\n", st->first->path,
                   st->child->path);
    return vmrecord_save(s->vmfd, &s->rec, err);
}

static void tell(const struct session *s, const struct buf *told)
{
    const char *at = told->len > 0 ? (const char *)told->data : "";

    for (size_t n; (n = strcspn(at, "\n")) > 0; at += n + (at[n] != 0))
        store_note(s->store, "VM %s: %.*s", s->vm, (int)n, at);
}

static int pulse(void *user, uint64_t done, uint64_t total,
                 struct qstill_error *err)
{
    return job_pulse(user, done, total, err);
}

int layers_settle_merge(const struct session *s, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf told = BUF_INIT;
    struct merge_recovery how = {.told = &told,
                                 .bwlimit = s->bwlimit,
                                 .gentle = s->qmp != NULL,
                                 .stop = job_stop(s->first_job),
                                 .pulse = pulse,
                                 .user = s->first_job};
    bool did;
    int r = merge_recover(io_real(), s->vmfd, LAYERS_MERGE_JOURNAL, &how, &did,
                          err);

    if (s->first_job)
        job_measure(s->first_job, 0, 0);
    if (buf_append_u8(&told, 0) == 0)
        tell(s, &told);
    if (r == 0 || err->code != QSTILL_E_NO_SPACE)
        return err->code;
    /* a full disk is not to stop every later command, too */
    err_clear(err);
    return merge_abandon(io_real(), s->vmfd, LAYERS_MERGE_JOURNAL, &did, err);
}

int collapse_settle_off(struct session *s, struct journal *j,
                        struct qstill_error *err)
{
    if (layers_settle_merge(s, err) < 0)
        return err->code;
    if (follow_lowering(s, j, err) < 0)
        return err->code;
    return follow_rewrites(s, j, err);
}
