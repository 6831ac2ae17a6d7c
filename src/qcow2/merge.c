/* SPDX-License-Identifier: MIT */
/*
 * A merge as a whole: which layers go, who else stands on them, one group
 * after the other. Overlays outside of the chain take in what they need first;
 * then the groups of the chain, from the top down, so that no group reads a
 * layer that another has changed.
 */
#include "merge.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "base/sum.h"
#include "merge_impl.h"

/* ------------------------------------------------------------------- layers */

static int find_layer(const struct chain *c, const char *path, size_t *out,
                      struct qstill_error *err)
{
    struct stat st;

    if (stat(path, &st) < 0) {
        err_errno(err, errno, "cannot find layer %s", path);
        return err_hint(err, err->code == QSTILL_E_NOT_FOUND
                                 ? "was it dropped by a merge that was "
                                   "interrupted? Then name the others only"
                                 : "");
    }
    for (size_t i = 0; i < c->n; i++)
        if (c->layers[i]->info.dev == st.st_dev &&
            c->layers[i]->info.ino == st.st_ino) {
            *out = i;
            return 0;
        }
    return err_set(err, QSTILL_E_NOT_FOUND, "%s is no layer of the chain of %s",
                   path, c->layers[0]->path);
}

static int mark_dropped(struct merge *m, const struct merge_request *q,
                        struct qstill_error *err)
{
    m->drop = calloc(m->chain->n + 1, sizeof(bool));
    if (!m->drop)
        return err_nomem(err);
    if (q->drop_count == 0)
        return err_set(err, QSTILL_E_USAGE, "no layer to drop is named");
    for (size_t i = 0; i < q->drop_count; i++) {
        size_t at = 0;

        if (find_layer(m->chain, q->drop[i], &at, err) < 0)
            return err->code;
        if (at == 0) {
            err_set(err, QSTILL_E_USAGE,
                    "%s is the top of the chain and cannot be dropped",
                    q->drop[i]);
            return err_hint(err, "what it holds is what is to be kept");
        }
        if (m->chain->linked > 0 && at >= m->chain->linked) {
            err_set(err, QSTILL_E_PRECONDITION,
                    "%s is found by the symbolic link %s, and stays",
                    q->drop[i], m->chain->layers[m->chain->linked]->path);
            return err_hint(err, "others may go by that link; the overlay can "
                                 "name the file itself: qemu-img rebase -u");
        }
        if (image_is_foreign(m->chain->layers[at]))
            return image_check_readable(m->chain->layers[at], err);
        m->drop[at] = true;
    }
    return 0;
}

/* ------------------------------------------------------------------- groups */

static struct merge_group *add_group(struct merge *m, size_t upper, size_t last,
                                     bool main)
{
    struct merge_group *v =
        realloc(m->groups, (m->group_count + 1) * sizeof(*v));

    if (!v)
        return NULL;
    m->groups = v;
    v += m->group_count++;
    *v = (struct merge_group){.m = m,
                              .chain = main ? m->chain : NULL,
                              .upper = upper,
                              .last = last,
                              .main = main};
    return v;
}

/* The chain of an overlay outside: its own image, then layers of ours. */
static int child_chain(struct merge *m, struct merge_group *g, const char *path,
                       size_t parent, struct qstill_error *err)
{
    struct chain *ours = m->chain, *c = calloc(1, sizeof(*c));

    if (c)
        c->layers = calloc(ours->n + 1, sizeof(*c->layers));
    if (!c || !c->layers) {
        free(c);
        return err_nomem(err);
    }
    c->io = m->io;
    c->aio = ours->aio;
    for (size_t i = parent; i < ours->n; i++)
        c->layers[1 + i - parent] = ours->layers[i];
    c->n = 1 + ours->n - parent;
    g->chain = c;
    return image_open(&c->layers[0], m->io, path, QCOW2_FORMAT_QCOW2, err);
}

static size_t run_end(const struct merge *m, size_t i)
{
    while (i + 1 < m->chain->n && m->drop[i + 1])
        i++;
    return i;
}

static int add_children(struct merge *m, const struct merge_request *q,
                        size_t first, size_t last, struct qstill_error *err)
{
    size_t from = m->children.n;

    /* nothing goes: nobody else is concerned */
    if (m->output)
        return 0;
    if (children_find(m->chain, first, last, q->children, q->child_count,
                      m->seen, &m->children, err) < 0)
        return err->code;
    for (size_t i = from; i < m->children.n; i++) {
        const struct child *ch = &m->children.v[i];
        struct merge_group *g = add_group(m, 0, 1 + last - ch->parent, false);

        if (!g)
            return err_nomem(err);
        g->named = ch->named;
        if (child_chain(m, g, ch->path, ch->parent, err) < 0)
            return err->code;
    }
    return 0;
}

static int find_heirs(struct merge *m, const struct merge_request *q,
                      size_t upper, struct qstill_error *err)
{
    if (!m->lower_name)
        return 0;
    if (upper > 0)
        return err_set(err, QSTILL_E_USAGE,
                       "only the top of a chain can take a lower name");
    return children_find(m->chain, upper, upper, q->children, q->child_count,
                         m->seen, &m->heirs, err);
}

/* The top alone, like an overlay that is found outside. */
static int make_top_group(struct merge *m, struct qstill_error *err)
{
    struct chain *c = m->chain;
    struct merge_group *g;

    for (size_t i = run_end(m, 1) + 1; i < c->n; i++)
        if (m->drop[i] || !m->drop[1])
            return err_set(err, QSTILL_E_USAGE,
                           "only layers right below %s can be merged so",
                           c->layers[0]->path);
    g = add_group(m, 0, run_end(m, 1), false);
    if (!g)
        return err_nomem(err);
    g->named = true;
    return child_chain(m, g, c->layers[0]->path, 1, err);
}

static int make_groups(struct merge *m, const struct merge_request *q,
                       struct qstill_error *err)
{
    struct chain *c = m->chain;

    if (m->keep_dropped)
        return make_top_group(m, err);
    for (size_t i = 1; i < c->n; i++)
        if (m->drop[i] && !m->drop[i - 1] &&
            add_children(m, q, i, run_end(m, i), err) < 0)
            return err->code;
    for (size_t i = 1; i < c->n; i++) {
        if (!m->drop[i] || m->drop[i - 1])
            continue;
        if ((m->lower_name || m->output) && i != 1)
            return err_set(err, QSTILL_E_USAGE,
                           "only layers right below %s can be merged so",
                           c->layers[0]->path);
        if (find_heirs(m, q, i - 1, err) < 0)
            return err->code;
        if (!add_group(m, i - 1, run_end(m, i), true))
            return err_nomem(err);
    }
    return 0;
}

/* --------------------------------------------------------------------- open */

char *merge_journal_name(const char *top)
{
    const char *base = path_base(top);
    char *r;

    return asprintf(&r, MERGE_JOURNAL "%016llx",
                    (unsigned long long)sum_bytes(base, strlen(base), 0)) < 0
               ? NULL
               : r;
}

static int set_journal(struct merge *m, const struct merge_request *q,
                       struct qstill_error *err)
{
    const char *base;

    if (q->journal_dir >= 0)
        m->journal_dir = fcntl(q->journal_dir, F_DUPFD_CLOEXEC, 0);
    else if (path_open_dir(q->top, &m->journal_dir, &base, err) < 0)
        return err->code;
    if (m->journal_dir < 0)
        return err_errno(err, errno, "cannot keep the journal's directory");
    m->journal_name =
        q->journal_name ? strdup(q->journal_name) : merge_journal_name(q->top);
    return m->journal_name ? 0 : err_nomem(err);
}

static bool is_beside_images(const struct merge *m)
{
    return strncmp(m->journal_name, MERGE_JOURNAL, strlen(MERGE_JOURNAL)) == 0;
}

static int set_asked(struct merge *m, const struct merge_request *q,
                     struct qstill_error *err)
{
    struct merge_id id;

    if (path_absolute(q->top, &m->asked.top, err) < 0)
        return err->code;
    for (size_t i = 0; i < q->went_count; i++)
        if (merge_asked_add(&m->asked, q->went[i], NULL, err) < 0)
            return err->code;
    for (size_t i = 0; i < m->chain->n; i++)
        if (m->drop[i] && (merge_id_of(m->chain->layers[i]->fd, &id, err) < 0 ||
                           merge_asked_add(&m->asked, m->chain->layers[i]->path,
                                           &id, err) < 0))
            return err->code;
    for (size_t i = 0; q->children_are_ours && i < q->child_count; i++)
        if (merge_asked_add_child(&m->asked, q->children[i], err) < 0)
            return err->code;
    return 0;
}

/* Headers change in the course of a merge. */
static int note_foreign(struct merge *m, struct qstill_error *err)
{
    const struct chain *c = m->chain;

    if (!chain_foreign(c) || c->n < 2)
        return 0;
    m->foreign = strdup(c->layers[c->n - 2]->info.header.backing_format);
    return m->foreign ? 0 : err_nomem(err);
}

static int plan(struct merge *m, const struct merge_request *q,
                struct qstill_error *err)
{
    struct aio_options o = {.stop = q->stop};

    if (chain_open_foreign(&m->chain, m->io, q->top, q->format, err) < 0 ||
        note_foreign(m, err) < 0 || mark_dropped(m, q, err) < 0)
        return err->code;
    if (aio_open(&m->chain->aio, m->io, &o, err) < 0 ||
        make_groups(m, q, err) < 0 ||
        (q->children_are_ours && merge_check_named(m, q, err) < 0))
        return err->code;
    for (size_t i = 0; i < m->group_count; i++)
        if (group_plan(&m->groups[i], err) < 0)
            return err->code;
    merge_make_estimate(m);
    return 0;
}

int merge_open(struct merge **out, const struct io *io,
               const struct merge_request *q, struct qstill_error *err)
{
    CLEANUP(merge_closep) struct merge *m = calloc(1, sizeof(*m));

    if (!m)
        return err_nomem(err);
    m->io = io;
    m->direction = q->direction;
    m->lower_name = q->lower_name;
    m->keep_dropped = q->keep_dropped;
    m->below_is_theirs = q->below_is_theirs;
    m->estimate_only = q->estimate_only;
    m->bwlimit = q->bwlimit;
    m->gentle = q->gentle;
    m->journal_dir = -1;
    m->journal = (struct merge_journal)MERGE_JOURNAL_INIT;
    m->seen = q->seen ? q->seen : (m->own_seen = children_seen_new());
    if (!m->seen || (q->output && !(m->output = strdup(q->output))))
        return err_nomem(err);
    if (set_journal(m, q, err) < 0 || plan(m, q, err) < 0 ||
        set_asked(m, q, err) < 0)
        return err->code;
    *out = take_ptr(&m);
    return 0;
}

/* --------------------------------------------------------------------- work */

static struct merge_group *current(const struct merge *m)
{
    return m->now < m->group_count ? &m->groups[m->now] : NULL;
}

/* Earlier merges of this top may have left theirs: it becomes ours, too. */
static int ask(struct merge *m, struct qstill_error *err)
{
    CLEANUP(merge_asked_fini) struct merge_asked all = {0};

    if (merge_journal_asked(&m->journal, &all, err) < 0 ||
        (!all.top && path_absolute(m->asked.top, &all.top, err) < 0))
        return err->code;
    for (size_t i = 0; i < m->asked.n; i++) {
        const struct merge_file *f = &m->asked.v[i];

        if ((f->is_child ? merge_asked_add_child(&all, f->path, err)
                         : merge_asked_add(&all, f->path, &f->id, err)) < 0)
            return err->code;
    }
    return merge_journal_ask(&m->journal, &all, err);
}

/* An error is told, but what the journal was for is done. */
static int end_journal(struct merge *m, struct qstill_error *err)
{
    int r;

    m->now = m->group_count;
    if (!m->journalled)
        return 0;
    r = merge_journal_end(&m->journal, err);
    m->journalled = false;
    merge_journal_fini(&m->journal);
    /* another top's may have waited for what we were asked for */
    if (is_beside_images(m))
        merge_journal_end_idle(m->io, m->journal_dir);
    return r;
}

static int begin_journal(struct merge *m, struct qstill_error *err)
{
    struct qstill_error ignored;

    if (merge_journal_begin(&m->journal, m->io, m->journal_dir, m->journal_name,
                            err) < 0) {
        merge_journal_fini(&m->journal);
        m->now = m->group_count;
        return err->code;
    }
    m->journalled = true;
    /* with a lower name it is one group, which nobody can ask for again */
    if (is_beside_images(m) && !m->lower_name && ask(m, err) < 0) {
        end_journal(m, &ignored);
        return err->code;
    }
    return 0;
}

static int fail(struct merge *m, struct qstill_error *err)
{
    struct merge_group *g = current(m);
    struct qstill_error ignored;

    if ((g->phase < PHASE_NAMES || group_is_lost(g)) &&
        group_undo(g, &ignored) == 0 && end_journal(m, &ignored) == 0)
        return err->code;
    m->failed = true;
    if (err->code == QSTILL_E_BUSY && !is_beside_images(m))
        err->code = QSTILL_E_FAILED; /* a store takes that for not begun */
    err_wrap(err, "the merge is not over");
    if (!err->hint[0])
        err_hint(err, is_beside_images(m)
                          ? "mend that, then merge again: first of all that "
                            "finishes or undoes it"
                          : "mend that, then run qstill recover: it finishes "
                            "or undoes it");
    return err->code;
}

int merge_step(struct merge *m, bool *done, struct qstill_error *err)
{
    struct merge_group *g = current(m);

    *done = false;
    if (m->failed)
        return err_set(err, QSTILL_E_FAILED, "the merge has failed before");
    if (!m->output && !m->journalled && g && begin_journal(m, err) < 0)
        return err->code;
    if (g && group_step(g, err) < 0)
        return fail(m, err);
    if (g && g->phase == PHASE_DONE)
        m->now++;
    if (current(m))
        return 0;
    *done = true;
    return end_journal(m, err);
}

void merge_adopt_journal(struct merge *m, struct merge_journal *j)
{
    m->journal = *j;
    m->journalled = m->adopted = true;
    *j = (struct merge_journal)MERGE_JOURNAL_INIT;
}

int merge_fd(struct merge *m)
{
    const struct merge_group *g = current(m);

    return g && g->phase == PHASE_MOVE && g->mover ? mover_fd(g->mover) : -1;
}

bool merge_is_late(const struct merge *m)
{
    const struct merge_group *g = current(m);

    return g && !m->failed && g->phase >= PHASE_FLIP;
}

int merge_cancel(struct merge *m, struct qstill_error *err)
{
    struct merge_group *g = current(m);

    if (!g || m->failed)
        return 0;
    while (g->phase >= PHASE_NAMES && g->phase != PHASE_DONE)
        if (group_step(g, err) < 0)
            return fail(m, err);
    if (g->phase != PHASE_DONE && group_undo(g, err) < 0) {
        m->failed = true;
        return err->code;
    }
    return end_journal(m, err);
}

struct merge_count merge_count(const struct merge *m)
{
    const struct merge_group *g = current(m);
    struct merge_count c = m->done;

    if (g && g->mover) {
        c.done += mover_count(g->mover).done;
        c.shared += mover_count(g->mover).shared;
    }
    /* what is shared was not given back with the file that it was in */
    c.freed -= min_u64(c.freed, c.shared);
    return c;
}

void merge_close(struct merge *m)
{
    struct qstill_error ignored;

    if (!m)
        return;
    if (current(m) && (m->journalled || m->output))
        merge_cancel(m, &ignored);
    for (size_t i = 0; i < m->group_count; i++)
        group_fini(&m->groups[i]);
    free(m->groups);
    merge_journal_fini(&m->journal); /* where it is needed the file stays */
    children_fini(&m->children);
    children_fini(&m->heirs);
    merge_asked_fini(&m->asked);
    children_seen_free(m->own_seen);
    chain_close(m->chain);
    closep(&m->journal_dir);
    free(m->journal_name);
    free(m->output);
    free(m->foreign);
    free(m->drop);
    free(m);
}

void merge_closep(struct merge **m)
{
    merge_close(*m);
}
