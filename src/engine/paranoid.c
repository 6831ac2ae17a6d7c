/* SPDX-License-Identifier: MIT */
#include "paranoid.h"

#include <string.h>

#include "qcow2/content.h"
#include "session.h"

/* What it shows, and of a foreign first image where, and of which file. */
struct view {
    uint64_t sum;
    struct extents foreign;
    dev_t dev;
    ino_t ino;
    uint64_t size;
};

struct paranoid_sum {
    const char *id;
    const char *name;
    const char *disk;
    struct view view;
};

/* `before`: to be compared with, or NULL. */
static int look(const struct manifest_disk *d, const struct view *before,
                struct view *out, struct qstill_error *err)
{
    CLEANUP(chain_closep) struct chain *c = NULL;
    const struct image *bottom;

    if (chain_open_foreign(&c, io_real(), d->path, qcow2_format_any(d->format),
                           err) < 0)
        return err->code;
    bottom = chain_foreign(c);
    if (bottom) {
        out->dev = bottom->info.dev;
        out->ino = bottom->info.ino;
        out->size = bottom->info.file_size;
    }
    return content_sum(c, before ? &before->foreign : NULL, &out->sum,
                       &out->foreign, err);
}

static bool same(const struct view *a, const struct view *b)
{
    return a->sum == b->sum && a->dev == b->dev && a->ino == b->ino &&
           a->size == b->size && content_beyond(&b->foreign, &a->foreign) == 0;
}

void paranoid_fini(struct paranoid *p)
{
    for (size_t i = 0; i < p->count; i++)
        extents_fini(&p->sums[i].view.foreign);
    p->count = 0;
}

int paranoid_take(struct paranoid *p, struct arena *a, struct session *s,
                  bool (*gone)(void *user, const char *id), void *user,
                  struct qstill_error *err)
{
    size_t n = 0;

    for (size_t i = 0; i < s->tree.count; i++)
        n += s->tree.nodes[i].disk_count;
    p->sums = arena_array(a, n + 1, sizeof(*p->sums));
    if (!p->sums)
        return err_nomem(err);
    for (size_t i = 0; i < s->tree.count; i++) {
        const struct manifest *m = &s->tree.nodes[i];

        for (size_t k = 0; !gone(user, m->id) && k < m->disk_count; k++) {
            struct paranoid_sum *x = &p->sums[p->count++];

            *x = (struct paranoid_sum){0};
            x->id = arena_strdup(a, m->id);
            x->name = arena_strdup(a, m->name);
            x->disk = arena_strdup(a, m->disks[k].name);
            if (!x->id || !x->name || !x->disk)
                return err_nomem(err);
            if (look(&m->disks[k], NULL, &x->view, err) < 0)
                return err_wrap(err, "snapshot %s", m->name);
        }
    }
    return 0;
}

static void tell_filled(struct session *s, const struct paranoid_sum *x,
                        const struct view *now)
{
    uint64_t filled = content_beyond(&x->view.foreign, &now->foreign);

    if (filled > 0)
        store_note(s->store,
                   "disk %s of snapshot %s: %llu bytes that its first image "
                   "showed before are not compared: its format is not known "
                   "here",
                   x->disk, x->name, (unsigned long long)filled);
}

static int check_one(struct session *s, const struct paranoid_sum *x,
                     const struct manifest_disk *d, struct qstill_error *err)
{
    struct view now = {0};

    if (look(d, &x->view, &now, err) < 0) {
        err_wrap(err, "snapshot %s", x->name);
    } else if (same(&x->view, &now)) {
        tell_filled(s, x, &now);
    } else {
        err_set(err, QSTILL_E_CORRUPT,
                "disk %s of snapshot %s reads differently after the delete",
                x->disk, x->name);
        err_hint(err, "bring %s back from a backup, and report this", d->path);
    }
    extents_fini(&now.foreign);
    return err->code;
}

int paranoid_check(const struct paranoid *p, struct session *s,
                   struct qstill_error *err)
{
    for (size_t i = 0; i < p->count; i++) {
        const struct paranoid_sum *x = &p->sums[i];
        const struct manifest *m = tree_find(&s->tree, x->id);
        const struct manifest_disk *d = m ? manifest_disk(m, x->disk) : NULL;

        if (!d)
            return err_set(err, QSTILL_E_CORRUPT,
                           "snapshot %s has lost its disk %s", x->name,
                           x->disk);
        if (check_one(s, x, d, err) < 0)
            return err->code;
    }
    return 0;
}
