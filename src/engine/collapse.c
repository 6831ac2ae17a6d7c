/* SPDX-License-Identifier: MIT */
/*
 * Merging hidden layers away. One pass looks at the whole graph and does one
 * merge; passes repeat until nothing more can be done. Each pass starts from
 * what the images' headers say, so that it may be cut and run again anywhere.
 *
 *   no child        the file is removed (never the disk's first image)
 *   one child       VM running, both in the live chain: QEMU merges them;
 *                   neither open: we do
 *   more children   the layer stays hidden until they are fewer
 *   trash           is left as it is, and so is what only trash reads
 */
#include <poll.h>
#include <string.h>

#include "heads.h"
#include "journal.h"
#include "layers.h"
#include "livechain.h"
#include "protect.h"
#include "qcow2/merge.h"
#include "session.h"

enum outcome { NOTHING, PROGRESS };

static bool is_first_image(struct session *s, const struct layer *l)
{
    const struct vm_disk *d = vmrecord_disk(&s->rec, l->disk);
    const char *first =
        d ? session_resolve(&s->rec.arena, &s->rec.launch, d->attach_path)
          : NULL;

    return !first || session_same_file(first, l->path);
}

static struct layer *only_child(const struct layers *all, const struct layer *l)
{
    for (size_t i = 0; i < all->count; i++)
        if (all->items[i].below == l)
            return &all->items[i];
    return NULL;
}

static int forget(struct session *s, const char *path, struct qstill_error *err)
{
    vmrecord_unhide(&s->rec, path);
    return vmrecord_save(s->vmfd, &s->rec, err);
}

/* After a merge the file that a snapshot names has another header. */
static int reidentify(struct session *s, const struct layer *l,
                      struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct manifest *m = l->owner ? tree_find(&s->tree, l->owner) : NULL;

    if (!m)
        return 0;
    for (size_t i = 0; i < m->disk_count; i++)
        if (strcmp(m->disks[i].path, l->path) == 0 &&
            layer_identify(m, &m->disks[i], err) < 0)
            return err->code;
    if (store_opendirat(s->snapsfd, m->id, &fd, err) < 0)
        return err->code;
    return manifest_save(fd, m, err);
}

static int drop_file(struct session *s, const struct layer *l, struct buf *text,
                     struct qstill_error *err)
{
    if (layer_remove(l->path, err) < 0 || forget(s, l->path, err) < 0)
        return err->code;
    if (text)
        buf_printf(text, "removed %s\n", l->path);
    return 0;
}

/* The head is folded into the hidden layer below it, which becomes the head.
 * A node that a revert in place opened outlives the job, and would keep what
 * is below it busy: it is closed while its file is still known as ours. */
static int fold_head(struct session *s, struct vm_disk *d,
                     const struct layer *gone, const struct layer *head,
                     struct journal *j, struct buf *text,
                     struct qstill_error *err)
{
    if (livechain_commit_head(s, d, gone->path, gone->format, j, err) < 0 ||
        heads_sweep(s, NULL, err) < 0 || layer_remove(head->path, err) < 0 ||
        forget(s, head->path, err) < 0)
        return err->code;
    if (text)
        buf_printf(text, "folded %s into %s\n", head->path, gone->path);
    return 0;
}

static int pull(struct session *s, struct vm_disk *d, const struct layer *gone,
                const struct layer *child, struct journal *j, struct buf *text,
                struct qstill_error *err)
{
    j->rewriting = child->path;
    if (journal_save(s->vmfd, j, err) < 0 ||
        livechain_pull(s, d, child->path, gone->path, err) < 0 ||
        reidentify(s, child, err) < 0 || heads_sweep(s, NULL, err) < 0 ||
        drop_file(s, gone, NULL, err) < 0)
        return err->code;
    j->rewriting = NULL;
    if (text)
        buf_printf(text, "pulled %s into %s\n", gone->path, child->path);
    return 0;
}

static int merge_live(struct session *s, struct vm_disk *d,
                      const struct layer *gone, const struct layer *child,
                      struct journal *j, struct buf *text,
                      enum outcome *outcome, struct qstill_error *err)
{
    bool first = is_first_image(s, gone);

    /* The first image is where the VM came from: it only ever is folded into,
     * and only by the head, so that the last delete gives it back. */
    if (first && !child->head)
        return 0;
    *outcome = PROGRESS;
    if (child->head && (first || child->allocated <= gone->allocated))
        return fold_head(s, d, gone, child, j, text, err);
    return pull(s, d, gone, child, j, text, err);
}

/* ------------------------------------------------------------- our own merge
 */

static int run_merge(const struct merge_request *request,
                     struct qstill_error *err)
{
    CLEANUP(merge_closep) struct merge *m = NULL;
    bool done = false;

    if (merge_open(&m, io_real(), request, err) < 0)
        return err->code;
    while (!done) {
        struct pollfd p = {.events = POLLIN};

        if (merge_step(m, &done, err) < 0)
            return err->code;
        p.fd = done ? -1 : merge_fd(m);
        if (p.fd >= 0)
            poll(&p, 1, 100);
    }
    return 0;
}

static void name_request(struct merge_request *r, struct session *s,
                         const struct layer *child, const char *const *drop)
{
    r->top = child->path;
    r->drop = drop;
    r->drop_count = 1;
    r->journal_dir = s->vmfd;
    r->journal_name = LAYERS_MERGE_JOURNAL;
}

/* The head goes into the disk's first image, which is the head then. */
static int fold_head_off(struct session *s, struct vm_disk *d,
                         const struct layer *gone, const struct layer *head,
                         struct journal *j, struct qstill_error *err)
{
    const char *drop[] = {gone->path};
    struct merge_request r = MERGE_REQUEST_INIT;

    name_request(&r, s, head, drop);
    r.lower_name = true;
    j->pivot_disk = d->name;
    j->pivot_from = head->path;
    j->pivot_to = gone->path;
    j->pivot_to_format = gone->format;
    if (journal_save(s->vmfd, j, err) < 0 || run_merge(&r, err) < 0)
        return err->code;
    if (vmrecord_set_head(&s->rec, d->name, gone->path, gone->format, err) < 0)
        return err->code;
    j->pivot_disk = j->pivot_from = j->pivot_to = j->pivot_to_format = NULL;
    return forget(s, gone->path, err);
}

static int pull_off(struct session *s, const struct layer *gone,
                    const struct layer *child, struct journal *j,
                    struct qstill_error *err)
{
    const char *drop[] = {gone->path};
    struct merge_request r = MERGE_REQUEST_INIT;

    name_request(&r, s, child, drop);
    j->rewriting = child->path;
    if (journal_save(s->vmfd, j, err) < 0 || run_merge(&r, err) < 0 ||
        reidentify(s, child, err) < 0)
        return err->code;
    j->rewriting = NULL;
    return forget(s, gone->path, err);
}

/* A layer that cannot be merged now is left alone: in use, of a format that
 * only QEMU writes, no space. It reads as before. */
static bool can_wait(const struct qstill_error *err)
{
    return err->code == QSTILL_E_BUSY || err->code == QSTILL_E_PRECONDITION ||
           err->code == QSTILL_E_NO_SPACE;
}

static int merge_off(struct session *s, struct vm_disk *d,
                     const struct layer *gone, const struct layer *child,
                     struct journal *j, struct buf *text, enum outcome *outcome,
                     struct qstill_error *err)
{
    bool first = is_first_image(s, gone);
    struct qstill_error why = {0};
    int r;

    if (first && !child->head)
        return 0;
    r = first ? fold_head_off(s, d, gone, child, j, &why)
              : pull_off(s, gone, child, j, &why);
    if (r < 0 && !can_wait(&why)) {
        *err = why;
        return err->code;
    }
    if (r < 0) {
        j->rewriting = NULL;
        j->pivot_disk = j->pivot_from = j->pivot_to = j->pivot_to_format = NULL;
        if (text)
            buf_printf(text, "%s stays hidden: %s\n", gone->path, why.message);
        return 0;
    }
    *outcome = PROGRESS;
    if (text)
        buf_printf(text, "merged %s and %s\n", gone->path, child->path);
    return 0;
}

/* What a process that died in a merge left behind. */
static int settle_off(struct session *s, struct journal *j,
                      struct qstill_error *err)
{
    struct layer one = {.path = j->rewriting};
    const struct manifest *m;
    bool did;

    if (merge_recover(io_real(), s->vmfd, LAYERS_MERGE_JOURNAL, &did, err) < 0)
        return err->code;
    if (!j->rewriting)
        return 0;
    m = tree_owner(&s->tree, j->rewriting);
    one.owner = m ? m->id : NULL;
    j->rewriting = NULL;
    return reidentify(s, &one, err);
}

/* ------------------------------------------------------------------- a pass */

static int merge_one(struct session *s, const struct layers *all,
                     const struct layer *gone, struct journal *j,
                     struct buf *text, enum outcome *outcome,
                     struct qstill_error *err)
{
    struct vm_disk *d = vmrecord_disk(&s->rec, gone->disk);
    const struct layer *child = only_child(all, gone);
    bool has_gone = false, has_child = false;

    if (!d || !child || child->trash)
        return 0;
    if (s->qmp && (livechain_has(s, d, gone->path, &has_gone, err) < 0 ||
                   livechain_has(s, d, child->path, &has_child, err) < 0))
        return err->code;
    if (has_gone && has_child)
        return merge_live(s, d, gone, child, j, text, outcome, err);
    if (has_gone || has_child)
        return 0;
    return merge_off(s, d, gone, child, j, text, outcome, err);
}

static int look_at(struct session *s, const struct layers *all,
                   const struct layer *l, struct journal *j, struct buf *text,
                   enum outcome *outcome, struct qstill_error *err)
{
    if (!l->hidden || l->head || l->owner || l->trash)
        return 0;
    if (l->missing) {
        *outcome = PROGRESS;
        return forget(s, l->path, err);
    }
    if (l->children == 0) {
        if (is_first_image(s, l))
            return 0;
        *outcome = PROGRESS;
        return drop_file(s, l, text, err);
    }
    if (l->children == 1)
        return merge_one(s, all, l, j, text, outcome, err);
    return 0;
}

static int one_pass(struct session *s, struct journal *j, struct buf *text,
                    enum outcome *outcome, struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0, NULL};

    *outcome = NOTHING;
    if (layers_load(s, &all, err) < 0)
        return err->code;
    for (size_t i = 0; i < all.count && *outcome == NOTHING; i++)
        if (look_at(s, &all, &all.items[i], j, text, outcome, err) < 0)
            return err->code;
    return 0;
}

static int open_protected(struct session *s, struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0, NULL};

    if (s->rec.hidden_count == 0)
        return 0;
    if (layers_load(s, &all, err) < 0)
        return err->code;
    return protect_open_hidden(&all, err);
}

int layers_collapse(struct session *s, struct journal *j, struct buf *text,
                    struct qstill_error *err)
{
    enum outcome outcome = PROGRESS;

    if (settle_off(s, j, err) < 0 || open_protected(s, err) < 0)
        return err->code;
    while (outcome == PROGRESS)
        if (one_pass(s, j, text, &outcome, err) < 0)
            return err->code;
    protect_all(s); /* not after a failure: it goes on where it stopped */
    if (text && s->rec.hidden_count > 0)
        buf_printf(text, "%zu layer%s stay%s hidden for now\n",
                   s->rec.hidden_count, s->rec.hidden_count == 1 ? "" : "s",
                   s->rec.hidden_count == 1 ? "s" : "");
    return 0;
}
