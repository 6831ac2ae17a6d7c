/* SPDX-License-Identifier: MIT */
/*
 * What a dead merge has left, by its journal and the files themselves:
 *
 *   no whole record        nothing had begun, or it ended between two groups
 *   target as it was       back: cut it to the length that is in use
 *   target is the result   forward: names, unlink
 *   new file, not named    back: remove it
 *   raw base, clusters     forward: fold again, from the start
 *   that are written over
 *
 * A VM may have been started since, for the chain is right in each of these
 * states (without hard links not while names move: merge_link.c). It is asked
 * for by the locks (BUSY), and a file at the result's place that was written to
 * is not replaced: the chain then stays as it is, right, with the dropped layer
 * still in it.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "merge_impl.h"

struct place {
    int dirfd;
    const char *name;
    const struct merge_recovery *how; /* or NULL */
    bool abandon;                     /* folds that could go on */
};

static void count(const struct merge *m, const struct merge_recovery *how)
{
    struct merge_count c = merge_count(m), *sum;

    if (!how || !how->done)
        return;
    sum = &how->done->count;
    sum->done += c.done;
    sum->shared += c.shared;
    sum->freed += c.freed;
    how->done->direction = merge_estimate(m)->direction;
}

/* All of it, unless somebody stops it while it can be stopped. */
static int go_on(struct merge *m, const struct merge_recovery *how,
                 struct qstill_error *err)
{
    bool done = false;

    while (!done) {
        if (merge_step(m, &done, err) < 0)
            return err->code;
        if (how && how->pulse && !done && !merge_is_late(m) &&
            how->pulse(how->user, merge_count(m).done, merge_estimate(m)->bytes,
                       err) < 0)
            return err->code;
    }
    count(m, how);
    return 0;
}

/* Plans and does it again; its journal is the one at hand. */
static int fold_again(const struct io *io, const struct merge_record *r,
                      enum merge_direction direction, struct merge_journal *j,
                      struct qstill_error *err)
{
    CLEANUP(merge_closep) struct merge *m = NULL;
    CLEANUP(freep)
    const char **names =
        calloc(r->gone_count + r->repoint_count + 1, sizeof(*names));
    struct merge_request q = MERGE_REQUEST_INIT;

    if (!names)
        return err_nomem(err);
    q.top = r->upper.path;
    q.lower_name = strcmp(r->target.path, r->result.path) == 0;
    q.direction = direction;
    if (r->how) {
        q.bwlimit = r->how->bwlimit;
        q.gentle = r->how->gentle;
        q.stop = r->how->stop;
    }
    /* a store's, whose engine knows: one beside images may be of anybody who
     * can write there, and is asked like a merge */
    q.below_is_theirs =
        strncmp(j->name, MERGE_JOURNAL, strlen(MERGE_JOURNAL)) != 0;
    q.journal_dir = j->dirfd;
    q.journal_name = j->name;
    q.drop = names;
    names[q.drop_count++] = r->target.path;
    for (size_t i = 0; i < r->gone_count; i++)
        if (strcmp(r->gone[i].path, r->upper.path) != 0 &&
            merge_id_is(r->gone[i].path, &r->gone[i].id))
            names[q.drop_count++] = r->gone[i].path;
    q.children = names + q.drop_count;
    for (size_t i = 0; i < r->repoint_count; i++)
        names[q.drop_count + q.child_count++] = r->repoint[i].file.path;
    if (merge_open(&m, io, &q, err) < 0)
        return err->code;
    merge_adopt_journal(m, j);
    return go_on(m, r->how, err);
}

/* Once an overlay names the base, the fold cannot be planned again: the base
 * has one more overlay. Nor need it be. */
static int recover_raw(const struct io *io, const struct merge_record *r,
                       struct merge_journal *j, struct qstill_error *err)
{
    bool over = true;

    switch (merge_id_look(r->upper.path, &r->upper.id, false, NULL)) {
    case MERGE_SAME:
        if (record_is_repointed(io, r, &over, err) < 0)
            return err->code;
        if (!over)
            return fold_again(io, r, MERGE_DOWN, j, err);
        /* fall through */
    case MERGE_ABSENT:
        return record_finish_late(io, r, err) < 0 ? err->code
                                                  : merge_journal_end(j, err);
    default:
        return record_not_there(&r->upper, err);
    }
}

/* The way it went, if it still can: somebody may have made snapshots in the
 * upper image since, and then that has to take in the lower one, which asks
 * nothing of the places that are torn. */
static int recover_torn(const struct io *io, const struct merge_record *r,
                        struct merge_journal *j, struct qstill_error *err)
{
    struct qstill_error first;

    if (!merge_id_is(r->upper.path, &r->upper.id))
        return record_not_there(&r->upper, err);
    if (fold_again(io, r, MERGE_DOWN, j, err) == 0)
        return 0;
    if (err->code != QSTILL_E_PRECONDITION ||
        strcmp(r->target.path, r->result.path) == 0 || j->fd < 0)
        return err->code;
    first = *err;
    if (fold_again(io, r, MERGE_UP, j, err) == 0)
        return 0;
    if (err->code != QSTILL_E_PRECONDITION)
        *err = first;
    return err->code;
}

/* A fold is left as it is: what the upper image shows is what it always was,
 * and the target, which is worth nothing by itself, can be folded into again.
 */
static int give_up(const struct io *io, const struct merge_record *r,
                   struct merge_journal *j, const struct place *p,
                   struct qstill_error *err)
{
    struct qstill_error ignored;
    bool torn;

    record_is_torn(io, r, &torn, &ignored); /* cuts */
    /* the fold may have had it to its end */
    if (j->fd < 0 && merge_journal_open(j, io, p->dirfd, p->name, err) < 0)
        return err->code;
    return merge_journal_end(j, err);
}

/* After a fold that failed anew. One that cannot read what it folds, or not
 * write it, would stop every later command, too. One whose images a VM has
 * open by now can wait: the VM sees what is right. */
static int after_failure(const struct io *io, const struct merge_record *r,
                         struct merge_journal *j, const struct place *p,
                         struct qstill_error *err)
{
    struct qstill_error ignored;

    /* without the upper image the rest has to be done */
    if (!merge_id_is(r->upper.path, &r->upper.id))
        return err->code;
    if (err->code == QSTILL_E_BUSY)
        return give_up(io, r, j, p, err);
    if ((err->code == QSTILL_E_CORRUPT || err->code == QSTILL_E_FAILED) &&
        give_up(io, r, j, p, &ignored) == 0)
        err_hint(err,
                 "that merge was given up: %s shows what it did, %s by "
                 "itself is neither old nor new",
                 r->upper.path, r->target.path);
    return err->code;
}

static int recover_fold(const struct io *io, const struct merge_record *r,
                        struct merge_journal *j, struct qstill_error *err)
{
    return r->kind == MERGE_INTO_RAW ? recover_raw(io, r, j, err)
                                     : recover_torn(io, r, j, err);
}

/* The target's file is there, and may be half written over: the flip takes the
 * mark away. */
static bool may_be_torn(const struct io *io, const struct merge_record *r)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    struct qstill_error ignored = {0};
    const char *path = r->target.path;

    if (!merge_id_is(path, &r->target.id))
        path = r->result.path;
    if (!merge_id_is(path, &r->target.id))
        return false;
    return qcow2_info_read(io, AT_FDCWD, path, QCOW2_FORMAT_QCOW2, &info,
                           &ignored) < 0 ||
           info.header.version < 3 ||
           (info.header.incompatible & QCOW2_INCOMPAT_CORRUPT);
}

/* Somebody has helped himself: all that was to go is gone, and nothing is
 * torn. */
static bool nothing_is_left(const struct io *io, const struct merge_record *r)
{
    for (size_t i = 0; i < r->gone_count; i++)
        if (merge_id_is(r->gone[i].path, &r->gone[i].id))
            return false;
    return r->kind == MERGE_IN_PLACE ||
           (r->kind == MERGE_OVERWRITE && !may_be_torn(io, r));
}

static int recover_record(const struct io *io, struct merge_journal *j,
                          const struct place *p, bool *did,
                          struct qstill_error *err)
{
    CLEANUP(merge_record_fini) struct merge_record r = {0};
    bool whole, torn = false;
    int code;

    r.how = p->how;
    r.told = p->how ? p->how->told : NULL;
    if (merge_journal_read(j, &r, &whole, err) < 0)
        return err->code;
    if (!whole) { /* nothing had begun, or it ended between two groups */
        code = merge_journal_end(j, err);
        *did = faccessat(p->dirfd, p->name, F_OK, 0) < 0;
        return code;
    }
    *did = true;
    if (record_is_torn(io, &r, &torn, err) < 0) {
        if (err->code == QSTILL_E_BUSY)
            return after_failure(io, &r, j, p, err);
        return err->code == QSTILL_E_CORRUPT && nothing_is_left(io, &r)
                   ? merge_journal_end(j, err)
                   : err->code;
    }
    torn |= r.kind == MERGE_INTO_RAW;
    if (torn && p->abandon && merge_id_is(r.upper.path, &r.upper.id))
        return give_up(io, &r, j, p, err);
    if (torn)
        return recover_fold(io, &r, j, err) < 0
                   ? after_failure(io, &r, j, p, err)
                   : 0;
    code = r.kind == MERGE_NEW_FILE ? record_settle_new_file(io, &r, j, err)
                                    : record_settle(io, &r, err);
    if (code == QSTILL_E_CORRUPT && nothing_is_left(io, &r))
        code = 0;
    return code < 0 ? code : merge_journal_end(j, err);
}

static void hint_journal(const struct place *p, struct qstill_error *err)
{
    CLEANUP(freep) char *path = merge_journal_path(p->dirfd, p->name);

    if (!err->hint[0])
        err_hint(err, "when the images are right, remove its journal, %s",
                 path ? path : p->name);
}

static int recover(const struct io *io, const struct place *p, bool *did,
                   struct qstill_error *err)
{
    CLEANUP(merge_journal_fini)
    struct merge_journal j = MERGE_JOURNAL_INIT;

    *did = false;
    if (merge_journal_open(&j, io, p->dirfd, p->name, err) < 0) {
        if (err->code != QSTILL_E_NOT_FOUND)
            return err->code;
        *err = (struct qstill_error){0};
        return 0;
    }
    if (recover_record(io, &j, p, did, err) < 0) {
        *did = false;
        if (err->code == QSTILL_E_CORRUPT)
            hint_journal(p, err);
        if (err->code == QSTILL_E_CANCELLED)
            err_hint(err, "the next merge of these images goes on with it");
        return err_wrap(err, "recovering an unfinished merge");
    }
    *err = (struct qstill_error){0};
    return 0;
}

int merge_recover(const struct io *io, int dirfd, const char *name,
                  const struct merge_recovery *how, bool *did,
                  struct qstill_error *err)
{
    struct place p = {dirfd, name, how, false};

    return recover(io, &p, did, err);
}

int merge_abandon(const struct io *io, int dirfd, const char *name, bool *did,
                  struct qstill_error *err)
{
    struct place p = {dirfd, name, NULL, true};

    return recover(io, &p, did, err);
}
