/* SPDX-License-Identifier: MIT */
#include "layers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/sum.h"
#include "layer_file.h"
#include "qcow2/info.h"
#include "qcow2/torn.h"
#include "session.h"

/* ------------------------------------------------------------------ finding */

/* Open addressing; 0 is free, else the index of a layer plus one. A disk has
 * hundreds of layers and a VM many disks: no list is walked here. */
static size_t slot_of(const struct layers *l, const char *path)
{
    return (size_t)sum_bytes(path, strlen(path), 0) & (l->slot_count - 1);
}

static void insert(struct layers *l, size_t index)
{
    size_t at = slot_of(l, l->items[index].path);

    while (l->slots[at] != 0)
        at = (at + 1) & (l->slot_count - 1);
    l->slots[at] = (uint32_t)index + 1;
}

/* Room for one more, in both arrays. */
static int grow(struct layers *l, struct qstill_error *err)
{
    size_t cap = l->cap ? 2 * l->cap : 64;
    struct layer *items;
    uint32_t *slots;

    if (l->count < l->cap)
        return 0;
    items = realloc(l->items, cap * sizeof(*items));
    if (!items)
        return err_nomem(err);
    l->items = items;
    slots = calloc(2 * cap, sizeof(*slots));
    if (!slots)
        return err_nomem(err);
    free(l->slots);
    l->slots = slots;
    l->cap = cap;
    l->slot_count = 2 * cap;
    for (size_t i = 0; i < l->count; i++)
        insert(l, i);
    return 0;
}

struct layer *layers_named(const struct layers *l, const char *path)
{
    if (l->slot_count == 0)
        return NULL;
    for (size_t at = slot_of(l, path); l->slots[at] != 0;
         at = (at + 1) & (l->slot_count - 1))
        if (strcmp(l->items[l->slots[at] - 1].path, path) == 0)
            return &l->items[l->slots[at] - 1];
    return NULL;
}

/* By its name, else it is one that was named in another way. */
struct layer *layers_find(const struct layers *l, const char *path)
{
    struct layer *found = layers_named(l, path);
    struct stat st;

    if (found || stat(path, &st) < 0)
        return found;
    for (size_t i = 0; i < l->count; i++)
        if (l->items[i].ino == st.st_ino && l->items[i].dev == st.st_dev)
            return &l->items[i];
    return NULL;
}

struct layer *layers_child(const struct layers *l, const struct layer *of,
                           const struct layer *after)
{
    size_t i = after ? (size_t)(after - l->items) + 1 : 0;

    for (; i < l->count; i++)
        if (l->items[i].below == of)
            return &l->items[i];
    return NULL;
}

/* ----------------------------------------------------------------- building */

static int add(struct layers *l, const struct layer *one,
               struct qstill_error *err)
{
    struct layer *known = layers_named(l, one->path);

    if (known) { /* a head may be hidden no longer, and the like */
        known->head |= one->head;
        known->hidden |= one->hidden;
        known->trash |= one->trash;
        known->keep |= one->keep;
        if (one->owner)
            known->owner = one->owner;
        return 0;
    }
    if (grow(l, err) < 0)
        return err->code;
    l->items[l->count] = *one;
    insert(l, l->count++);
    return 0;
}

static int add_all(struct session *s, struct layers *l,
                   struct qstill_error *err)
{
    for (size_t i = 0; i < s->tree.count; i++)
        for (size_t k = 0; k < s->tree.nodes[i].disk_count; k++) {
            const struct manifest_disk *d = &s->tree.nodes[i].disks[k];
            struct layer one = {.disk = d->name,
                                .path = d->path,
                                .format = d->format,
                                .owner = s->tree.nodes[i].id,
                                .named = &s->tree.nodes[i]};

            if (add(l, &one, err) < 0)
                return err->code;
        }
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];
        struct layer one = {.disk = d->name,
                            .path = d->head_path,
                            .format = d->head_format,
                            .head = true};

        if (add(l, &one, err) < 0)
            return err->code;
    }
    for (size_t i = 0; i < s->rec.hidden_count; i++) {
        const struct vm_hidden *h = &s->rec.hidden[i];
        struct layer one = {.disk = h->disk,
                            .path = h->path,
                            .format = h->format,
                            .hidden = true,
                            .keep = h->keep};

        if (add(l, &one, err) < 0)
            return err->code;
    }
    for (size_t i = 0; i < s->rec.trash_count; i++)
        for (size_t k = 0; k < s->rec.trash[i].layer_count; k++) {
            const struct vm_hidden *t = &s->rec.trash[i].layers[k];
            struct layer one = {.disk = t->disk,
                                .path = t->path,
                                .format = t->format,
                                .trash = true};

            if (add(l, &one, err) < 0)
                return err->code;
        }
    return 0;
}

/* A layer that cannot be read is told by `missing`; a revert or delete that
 * needs it will say so with its name. */
static int read_layer(struct session *s, const struct layers *old,
                      struct layer *one, struct qstill_error *err)
{
    const struct layer *was = layers_named(old, one->path);
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    struct qstill_error why = {0};
    const char *slash = strrchr(one->path, '/');
    struct stat st;

    if (stat(one->path, &st) < 0) {
        one->missing = true;
        return 0;
    }
    one->allocated = (uint64_t)st.st_blocks * 512;
    one->dev = st.st_dev;
    one->ino = st.st_ino;
    one->changed = st.st_ctim;
    /* a change within the clock's tick of another does not show in its time */
    if (was && !was->missing && time(NULL) - one->changed.tv_sec > 2 &&
        was->ino == one->ino && was->dev == one->dev &&
        was->changed.tv_sec == one->changed.tv_sec &&
        was->changed.tv_nsec == one->changed.tv_nsec) {
        one->backing = was->backing;
        one->torn = was->torn;
        return 0;
    }
    if (!layer_is_qcow2(one->format))
        return 0;
    if (layer_info(one->path, one->format, &info, &why) < 0) {
        one->missing = true;
        return 0;
    }
    one->torn = torn_is(&info.header);
    if (!info.header.has_backing)
        return 0;
    one->backing =
        info.header.backing[0] == '/' || !slash
            ? arena_strdup(&s->rec.arena, info.header.backing)
            : arena_printf(&s->rec.arena, "%.*s/%s", (int)(slash - one->path),
                           one->path, info.header.backing);
    return one->backing ? 0 : err_nomem(err);
}

/* More than a disk can have; then it is a loop. */
#define LOST_MAX 4096

/* Files between a layer and a known one further down: who needs them is not
 * known, but what is below them has an overlay. Files below the disk's first
 * image lead to no known one, and are nobody's of ours. */
static int add_lost(struct session *s, const struct layers *old,
                    struct layers *l, const char *disk, const char *backing,
                    struct qstill_error *err)
{
    CLEANUP(freep) struct layer *found = NULL;
    size_t n = 0;

    for (const char *path = backing; path && !layers_find(l, path);) {
        struct layer one = {
            .disk = disk, .path = path, .format = "qcow2", .trash = true};

        struct layer *more;

        if (n == LOST_MAX)
            return 0;
        more = realloc(found, (n + 1) * sizeof(*more));
        if (!more)
            return err_nomem(err);
        found = more;
        if (read_layer(s, old, &one, err) < 0)
            return err->code;
        if (one.missing || !one.backing)
            return 0;
        path = one.backing;
        found[n++] = one;
    }
    for (size_t i = 0; i < n; i++)
        if (add(l, &found[i], err) < 0)
            return err->code;
    return 0;
}

static int find_lost(struct session *s, const struct layers *old,
                     struct layers *l, struct qstill_error *err)
{
    /* those that are added lead to known ones */
    for (size_t i = 0, known = l->count; i < known; i++) {
        const struct layer *one = &l->items[i];

        if (one->backing && !layers_named(l, one->backing) &&
            add_lost(s, old, l, one->disk, one->backing, err) < 0)
            return err->code;
    }
    return 0;
}

int layers_load(struct session *s, struct layers *out, struct qstill_error *err)
{
    struct layers none = {0};

    return layers_reload(s, &none, out, err);
}

int layers_reload(struct session *s, const struct layers *old,
                  struct layers *out, struct qstill_error *err)
{
    struct layers l = {0};

    if (add_all(s, &l, err) < 0) {
        layers_fini(&l);
        return err->code;
    }
    for (size_t i = 0; i < l.count; i++)
        if (read_layer(s, old, &l.items[i], err) < 0) {
            layers_fini(&l);
            return err->code;
        }
    if (find_lost(s, old, &l, err) < 0) {
        layers_fini(&l);
        return err->code;
    }
    for (size_t i = 0; i < l.count; i++) {
        struct layer *one = &l.items[i];

        one->below = one->backing ? layers_find(&l, one->backing) : NULL;
        if (one->below)
            one->below->children++;
    }
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const char *first = session_first_image(&s->rec, &s->rec.disks[i]);
        struct layer *one = first ? layers_find(&l, first) : NULL;

        if (one)
            one->first_image = true;
    }
    *out = l;
    return 0;
}

void layers_fini(struct layers *l)
{
    free(l->items);
    free(l->slots);
    memset(l, 0, sizeof(*l));
}
