/* SPDX-License-Identifier: MIT */
#include "headuse.h"

#include <string.h>
#include <sys/stat.h>

#include "others.h"
#include "protect.h"
#include "qcow2/backing_name.h"
#include "qcow2/children.h"
#include "qcow2/merge_names.h"
#include "session.h"

int headuse_check_frozen(const struct session *s, struct qstill_error *err)
{
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];

        if (!protect_has(d->head_path))
            continue;
        err_set(err, QSTILL_E_PRECONDITION, "disk %s: head %s is immutable",
                d->name, d->head_path);
        return err_hint(err,
                        "if VM %s is attached in another store, too, that one "
                        "has frozen it: use that (qstill --store), and detach "
                        "the VM here; else chattr -i the file",
                        s->vm);
    }
    return 0;
}

struct search {
    const struct session *s;
    struct stat *heads; /* st_ino 0: not there, which others tell */
    const char *overlay;
};

static int is_head(void *user, const char *path, struct qstill_error *err)
{
    const struct search *f = user;
    struct stat st;

    if (stat(path, &st) < 0)
        return 0;
    for (size_t i = 0; i < f->s->rec.disk_count; i++) {
        const struct vm_disk *d = &f->s->rec.disks[i];

        if (f->heads[i].st_ino != st.st_ino || f->heads[i].st_dev != st.st_dev)
            continue;
        err_set(err, QSTILL_E_PRECONDITION, "disk %s: %s stands on head %s",
                d->name, f->overlay, d->head_path);
        return err_hint(err,
                        "if VM %s is attached in another store, too, use that "
                        "(qstill --store), and detach the VM here; else "
                        "%s",
                        f->s->vm, OTHERS_HINT);
    }
    return 0;
}

static int visit(void *user, const struct overlay *o, struct qstill_error *err)
{
    struct search *f = user;

    f->overlay = o->path;
    if (o->backing)
        return is_head(f, o->backing, err);
    return o->name ? backing_name_files(o->path, o->name, is_head, f, err) : 0;
}

int headuse_check(const struct session *s, struct qstill_error *err)
{
    struct search f = {.s = s};
    const struct overlay_visitor v = {NULL, visit, &f};
    CLEANUP(freep) struct stat *heads = NULL;

    if (headuse_check_frozen(s, err) < 0)
        return err->code;
    f.heads = heads = calloc(s->rec.disk_count + 1, sizeof(*heads));
    if (!heads)
        return err_nomem(err);
    for (size_t i = 0; i < s->rec.disk_count; i++)
        if (stat(s->rec.disks[i].head_path, &heads[i]) < 0)
            heads[i] = (struct stat){0};
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const char *path = s->rec.disks[i].head_path;
        CLEANUP(freep) char *dir = path_dir(path);
        bool seen = heads[i].st_ino == 0;

        if (!dir)
            return err_nomem(err);
        for (size_t k = 0; k < i && !seen; k++)
            seen = heads[k].st_ino != 0 &&
                   path_same_dir(s->rec.disks[k].head_path, path);
        if (!seen && children_each(io_real(), dir, NULL, &v, err) < 0)
            return err->code;
    }
    return 0;
}
