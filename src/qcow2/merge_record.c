/* SPDX-License-Identifier: MIT */
/* What the journal is told about a group before it begins. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "merge_impl.h"
#include "repoint.h"
#include "temp_name.h"

static int set_file(struct merge_file *f, const char *path,
                    const struct image *img, struct qstill_error *err)
{
    if (img && merge_id_of(img->fd, &f->id, err) < 0)
        return err->code;
    return path_absolute(path, &f->path, err);
}

static int record_gone(struct merge_group *g, struct qstill_error *err)
{
    struct merge_record *r = &g->record;
    const struct chain *c = g->chain;

    if (!g->main || g->m->output)
        return 0;
    r->gone = calloc(g->last - g->upper + 1, sizeof(*r->gone));
    if (!r->gone)
        return err_nomem(err);
    for (size_t i = g->upper; i <= g->last; i++) {
        struct image *img = c->layers[i];

        if (img == g->target || strcmp(img->path, g->result) == 0)
            continue;
        if (set_file(&r->gone[r->gone_count], img->path, img, err) < 0)
            return err->code;
        r->gone_count++;
    }
    return 0;
}

static int check_heir(const struct io *io, const struct merge_repoint *p,
                      struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (io_openat(io, AT_FDCWD, p->file.path, O_RDWR, 0, &fd, err) < 0)
        return err->code;
    return qcow2_repointable(io, fd, p->file.path, p->backing, p->format, err);
}

/* What names U, when U's content gets another name. */
static int record_heirs(struct merge_group *g, struct qstill_error *err)
{
    struct merge_record *r = &g->record;
    const struct children *h = &g->m->heirs;
    const char *format = qcow2_format_name(g->target->info.format);

    if (!g->main || !g->m->lower_name || h->n == 0)
        return 0;
    r->repoint = calloc(h->n, sizeof(*r->repoint));
    if (!r->repoint)
        return err_nomem(err);
    for (size_t i = 0; i < h->n; i++) {
        struct merge_repoint *p = &r->repoint[r->repoint_count++];

        if (merge_id_look(h->v[i].path, NULL, true, &p->file.id) ==
            MERGE_ABSENT)
            return err_set(err, QSTILL_E_BUSY, "%s has just gone",
                           h->v[i].path);
        p->format = strdup(format);
        if (!p->format)
            return err_nomem(err);
        if (path_absolute(h->v[i].path, &p->file.path, err) < 0)
            return err->code;
        if (path_same_dir(h->v[i].path, g->result)) {
            p->backing = path_backing_name(g->result);
            if (!p->backing)
                return err_nomem(err);
        } else if (path_absolute(g->result, &p->backing, err) < 0) {
            return err->code;
        }
        /* found out now, not when there is no way back */
        if (check_heir(g->m->io, p, err) < 0)
            return err->code;
    }
    return 0;
}

/* The file that stands at the result's path, if it is not the target. */
static struct image *replaced(const struct merge_group *g)
{
    for (size_t i = g->upper; i <= g->last; i++)
        if (strcmp(g->chain->layers[i]->path, g->result) == 0)
            return g->chain->layers[i] == g->target ? NULL
                                                    : g->chain->layers[i];
    return NULL;
}

static int record_replaced(struct merge_group *g, struct qstill_error *err)
{
    struct merge_record *r = &g->record;
    struct image *old = replaced(g);
    struct stat st;

    if (set_file(&r->result, g->result, old, err) < 0)
        return err->code;
    if (!old)
        return 0;
    if (fstat(old->fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", old->path);
    r->result_size = (uint64_t)st.st_size;
    r->result_mtime_ns = st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec;
    return 0;
}

int group_make_record(struct merge_group *g, struct qstill_error *err)
{
    struct merge_record *r = &g->record;
    const struct qcow2_header *h = &g->target->info.header;
    CLEANUP(freep) char *temp = NULL;

    merge_record_fini(r);
    r->kind = g->kind;
    r->seen = g->m->seen;
    /* the journal has the name before the file is made */
    if (g->kind == MERGE_NEW_FILE &&
        temp_name_make(g->result, MERGE_TEMP, &temp, err) < 0)
        return err->code;
    if (set_file(&r->target, temp ? temp : g->target->path,
                 temp ? NULL : g->target, err) < 0 ||
        record_replaced(g, err) < 0 || record_gone(g, err) < 0 ||
        record_heirs(g, err) < 0)
        return err->code;
    if (g->chain->layers[g->upper] != g->target &&
        set_file(&r->upper, g->chain->layers[g->upper]->path,
                 g->chain->layers[g->upper], err) < 0)
        return err->code;
    r->old_size = g->target->info.file_size;
    r->old_l1 = h->l1_offset;
    r->new_l1 = g->rw.tables ? g->rw.l1_offset : h->l1_offset;
    r->old_backing = strdup(h->backing);
    r->new_backing = strdup(g->backing ? g->backing : "");
    return r->old_backing && r->new_backing ? 0 : err_nomem(err);
}
