/* SPDX-License-Identifier: MIT */
#include "others.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "layers.h"
#include "qcow2/backing_name.h"
#include "qcow2/children.h"
#include "qcow2/merge_names.h"
#include "session.h"

/* More than a disk can have; then it is a loop. */
#define CHAIN_MAX 4096

struct marking {
    struct session *s;
    struct layers *all;
    struct children_seen *seen;
    const char *vm;    /* whose disk it is that is looked at, or NULL */
    const char *image; /* the top of its chain */
    const char *next;  /* what the file at hand stands on */
};

/* ------------------------------------------------------------------- marks */

static int mark(struct marking *m, struct layer *l, const char *overlay,
                bool fixed, struct qstill_error *err)
{
    struct arena *a = &m->s->rec.arena;

    if (l->other && (l->other_fixed || !fixed))
        return 0;
    if (!m->vm)
        l->other = arena_printf(a, "%s stands on it", overlay);
    else if (overlay)
        l->other = arena_printf(a, "%s of VM %s stands on it", overlay, m->vm);
    else
        l->other = arena_printf(a, "it is a disk of VM %s, too", m->vm);
    l->other_fixed = fixed;
    return l->other ? 0 : err_nomem(err);
}

struct mention {
    struct marking *m;
    const char *overlay;
};

/* By the file, or, as it may be meant from elsewhere, by its name alone. */
static int mark_mentioned(void *user, const char *path,
                          struct qstill_error *err)
{
    const struct mention *by = user;
    struct layers *all = by->m->all;
    const struct layer *same = layers_find(all, path);

    for (size_t i = 0; i < all->count; i++) {
        struct layer *l = &all->items[i];

        if ((l == same || strcmp(path_base(l->path), path_base(path)) == 0) &&
            mark(by->m, l, by->overlay, true, err) < 0)
            return err->code;
    }
    return 0;
}

/* Of an overlay whose backing file has no plain name, or of an image with an
 * external data file: only a raw one can be that. */
static int mark_named(struct marking *m, const struct overlay *o,
                      struct qstill_error *err)
{
    struct mention by = {m, m->vm ? m->image : o->path};

    for (size_t i = 0; !o->name && i < m->all->count; i++) {
        struct layer *l = &m->all->items[i];

        if (strcmp(l->format, "raw") == 0 &&
            mark(m, l, by.overlay, true, err) < 0)
            return err->code;
    }
    if (!o->name)
        return 0;
    return backing_name_files(o->path, o->name, mark_mentioned, &by, err);
}

/* --------------------------------------------------------------- in folders */

/* One that cannot be read is looked at, too: of a layer of ours that is damaged
 * we still want to keep what it stands on. */
static bool is_known(void *user, const char *path)
{
    const struct marking *m = user;
    const struct layer *l = layers_named(m->all, path);

    return l && !l->missing;
}

static int visit_file(void *user, const struct overlay *o,
                      struct qstill_error *err)
{
    struct marking *m = user;
    struct layer *l = o->backing ? layers_find(m->all, o->backing) : NULL;
    const struct layer *self;

    if (!o->backing)
        return mark_named(m, o, err);
    if (!l)
        return 0;
    /* a layer by another name, through a folder that is a link */
    self = layers_find(m->all, o->path);
    return self && !self->missing ? 0 : mark(m, l, o->path, o->fixed, err);
}

/* The names of folders, each once; an array in the record's arena. */
struct folders {
    const char **v;
    size_t n, cap;
};

static int add_folder(struct session *s, struct folders *f, const char *path,
                      struct qstill_error *err)
{
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) + 1 : 0;

    for (size_t i = f->n; i-- > 0;) /* mostly that of the layer before */
        if (strlen(f->v[i]) == len && memcmp(f->v[i], path, len) == 0)
            return 0;
    if (f->n == f->cap) {
        size_t cap = f->cap ? 2 * f->cap : 16;
        const char **v = arena_array(&s->rec.arena, cap, sizeof(*v));

        if (!v)
            return err_nomem(err);
        if (f->n)
            memcpy(v, f->v, f->n * sizeof(*v));
        f->v = v;
        f->cap = cap;
    }
    f->v[f->n] = arena_printf(&s->rec.arena, "%.*s", (int)len, path);
    return f->v[f->n++] ? 0 : err_nomem(err);
}

static int mark_in_folders(struct marking *m, struct qstill_error *err)
{
    const struct overlay_visitor v = {is_known, visit_file, m};
    struct folders f = {0};

    for (size_t i = 0; i < m->all->count; i++) {
        const struct layer *l = &m->all->items[i];
        CLEANUP(freep)
        char *real = l->first_image ? realpath(l->path, NULL) : NULL;

        if ((!l->missing && add_folder(m->s, &f, l->path, err) < 0) ||
            (real && add_folder(m->s, &f, real, err) < 0))
            return err->code;
    }
    for (size_t i = 0; i < f.n; i++)
        if (children_each(io_real(), f.v[i], m->seen, &v, err) < 0)
            return err->code;
    return 0;
}

/* ------------------------------------------------------------ of other VMs */

static int visit_next(void *user, const struct overlay *o,
                      struct qstill_error *err)
{
    struct marking *m = user;

    if (!o->backing)
        return mark_named(m, o, err);
    m->next = arena_strdup(&m->s->rec.arena, o->backing);
    return m->next ? 0 : err_nomem(err);
}

/* From the top down, until a layer of ours is met. */
static int walk(struct marking *m, const char *image, struct qstill_error *err)
{
    const struct overlay_visitor v = {NULL, visit_next, m};
    const char *path = image;

    m->image = image;
    for (size_t n = 0; path && n < CHAIN_MAX; n++) {
        struct layer *l = layers_find(m->all, path);

        if (l)
            return mark(m, l, n > 0 ? image : NULL, true, err);
        m->next = NULL;
        if (children_look_at(io_real(), path, &v, err) < 0)
            return err->code == QSTILL_E_NOT_FOUND ? err_clear(err) : err->code;
        path = m->next;
    }
    return 0;
}

/* All layers of a disk stand on its first image, which is never given up. */
static const char *lowest_of(struct vm_record *rec, const struct vm_disk *d)
{
    const char *first = session_first_image(rec, d);

    return first && *first == '/' && access(first, F_OK) == 0 ? first
                                                              : d->head_path;
}

static int mark_of_vm(struct marking *m, const char *vm,
                      struct qstill_error *err)
{
    CLEANUP(closep) int vmfd = -1;
    CLEANUP(vmrecord_fini) struct vm_record rec = {.arena = ARENA_INIT};

    if (store_open_vm(m->s->store, vm, &vmfd, err) < 0 ||
        vmrecord_load(vmfd, &rec, err) < 0)
        return err->code;
    m->vm = vm;
    for (size_t i = 0; i < rec.disk_count; i++)
        if (walk(m, lowest_of(&rec, &rec.disks[i]), err) < 0)
            return err->code;
    return 0;
}

static int mark_of_store(struct marking *m, struct qstill_error *err)
{
    CLEANUP(closep) int top = -1;
    char **names = NULL;
    size_t count = 0;

    if (store_open_dir(m->s->store, &top, err) < 0 ||
        store_names(top, &names, &count, err) < 0)
        return err->code;
    for (size_t i = 0; i < count && err->code == 0; i++)
        if (store_is_vm(top, names[i]) && strcmp(names[i], m->s->vm) != 0 &&
            mark_of_vm(m, names[i], err) < 0)
            err_wrap(err, "VM %s", names[i]);
    store_names_free(names, count);
    return err->code;
}

bool others_hold(const struct session *s, const struct layer *l)
{
    return l->other && (l->other_fixed || l->children == 0 || s->qmp);
}

int others_mark(struct session *s, struct layers *all,
                struct children_seen *seen, struct qstill_error *err)
{
    struct marking m = {.s = s, .all = all, .seen = seen};

    for (size_t i = 0; i < all->count; i++)
        all->items[i].other = NULL, all->items[i].other_fixed = false;
    all->unsure = NULL;
    if (mark_in_folders(&m, err) == 0 && mark_of_store(&m, err) == 0)
        return 0;
    all->unsure = arena_printf(
        &s->rec.arena, "who stands on it cannot be told (%s)", err->message);
    err_clear(err);
    return all->unsure ? 0 : err_nomem(err);
}
