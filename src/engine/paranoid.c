/* SPDX-License-Identifier: MIT */
#include "paranoid.h"

#include <string.h>

#include "qcow2/content.h"
#include "session.h"

struct paranoid_sum {
    const char *id;
    const char *name;
    const char *disk;
    uint64_t sum;
};

static int sum_of(const struct manifest_disk *d, uint64_t *sum,
                  struct qstill_error *err)
{
    CLEANUP(chain_closep) struct chain *c = NULL;
    enum qcow2_format format;

    if (qcow2_format_parse(d->format, &format, err) < 0 ||
        chain_open(&c, io_real(), d->path, format, CHAIN_UNLOCKED, err) < 0)
        return err->code;
    return content_sum(c, sum, err);
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
            struct paranoid_sum *x = &p->sums[p->count];

            x->id = arena_strdup(a, m->id);
            x->name = arena_strdup(a, m->name);
            x->disk = arena_strdup(a, m->disks[k].name);
            if (!x->id || !x->name || !x->disk)
                return err_nomem(err);
            if (sum_of(&m->disks[k], &x->sum, err) < 0)
                return err_wrap(err, "snapshot %s", m->name);
            p->count++;
        }
    }
    return 0;
}

int paranoid_check(const struct paranoid *p, struct session *s,
                   struct qstill_error *err)
{
    for (size_t i = 0; i < p->count; i++) {
        const struct paranoid_sum *x = &p->sums[i];
        const struct manifest *m = tree_find(&s->tree, x->id);
        const struct manifest_disk *d = m ? manifest_disk(m, x->disk) : NULL;
        uint64_t now = 0;

        if (!d)
            return err_set(err, QSTILL_E_CORRUPT,
                           "snapshot %s has lost its disk %s", x->name,
                           x->disk);
        if (sum_of(d, &now, err) < 0)
            return err_wrap(err, "snapshot %s", x->name);
        if (now != x->sum) {
            err_set(err, QSTILL_E_CORRUPT,
                    "disk %s of snapshot %s reads differently after the "
                    "delete",
                    x->disk, x->name);
            return err_hint(err, "bring %s back from a backup, and report this",
                            d->path);
        }
    }
    return 0;
}
