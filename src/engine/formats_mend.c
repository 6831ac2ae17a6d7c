/* SPDX-License-Identifier: MIT */
#include "formats_mend.h"

#include <fcntl.h>
#include <string.h>

#include "base/io.h"
#include "launch_discard.h"
#include "layer_file.h"
#include "layers.h"
#include "protect.h"
#include "qcow2/lock.h"
#include "qcow2/repoint.h"
#include "qmp/block.h"
#include "session.h"

static bool names_filter(const char *path)
{
    CLEANUP(layer_backing_fini) struct layer_backing b = {0};
    struct qstill_error ignored = {0};

    return layer_backing_read(path, &b, &ignored) == 0 && b.any && b.path &&
           qmp_is_filter(b.format);
}

static bool is_of(const struct vm_disk *d, const char *disk)
{
    return strcmp(d->name, disk) == 0;
}

static struct manifest_disk *filtered(const struct manifest *m,
                                      const struct vm_disk *d)
{
    struct manifest_disk *md = manifest_disk(m, d->name);

    return md && qmp_is_filter(md->format) ? md : NULL;
}

static int save(struct session *s, const struct manifest *m,
                struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    return store_opendirat(s->snapsfd, m->id, &fd, err) < 0
               ? err->code
               : manifest_save(fd, m, s->vmfd, err);
}

/* ------------------------------------------------------------------ the steps
 */

/* Whatever is changed here must be what it was. One that was changed already
 * before this was cut has no identity. */
static int check_layers(struct session *s, const struct vm_disk *d,
                        const struct layers *all, struct qstill_error *err)
{
    for (size_t i = 0; i < s->tree.count; i++) {
        const struct manifest *m = &s->tree.nodes[i];
        const struct manifest_disk *md = manifest_disk(m, d->name);

        if (md && (filtered(m, d) || names_filter(md->path)) &&
            layer_check(md, err) < 0)
            return err_wrap(err, "snapshot %s", m->name);
    }
    for (size_t i = 0; i < all->count; i++) {
        CLEANUP(closep) int fd = -1;
        const char *path = all->items[i].path;

        if (!is_of(d, all->items[i].disk) || !names_filter(path))
            continue;
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && image_lock_look(fd, path, IMAGE_LOCK_WRITE, err) < 0)
            return err->code;
    }
    return 0;
}

/* The identity of an overlay whose header will be another goes first: cut
 * after it was written, the layer is not taken for a changed one. */
static int mend_manifests(struct session *s, const struct vm_disk *d,
                          const char *format, struct qstill_error *err)
{
    for (size_t i = 0; i < s->tree.count; i++) {
        struct manifest *m = &s->tree.nodes[i];
        struct manifest_disk *md = manifest_disk(m, d->name);
        bool first = md && qmp_is_filter(md->format);

        if (!first && !(md && names_filter(md->path)))
            continue;
        if (first) {
            md->format = arena_strdup(&m->arena, format);
            if (!md->format)
                return err_nomem(err);
        }
        md->dev = md->ino = md->file_size = md->mtime_ns = 0;
        md->header_hash = NULL;
        if (save(s, m, err) < 0)
            return err->code;
    }
    return 0;
}

static int mend_headers(const struct vm_disk *d, const struct layers *all,
                        const char *format, struct qstill_error *err)
{
    for (size_t i = 0; i < all->count; i++) {
        const struct layer *l = &all->items[i];
        CLEANUP(layer_backing_fini) struct layer_backing b = {0};
        CLEANUP(closep) int fd = -1;

        if (!is_of(d, l->disk) || !names_filter(l->path))
            continue;
        if (layer_backing_read(l->path, &b, err) < 0 ||
            protect_clear(l->path, err) < 0 ||
            io_openat(io_real(), AT_FDCWD, l->path, O_RDWR, 0, &fd, err) < 0 ||
            image_lock(fd, l->path, IMAGE_LOCK_WRITE, err) < 0 ||
            qcow2_repoint(io_real(), fd, l->path, b.path, format, err) < 0)
            return err_wrap(err, "the backing format of %s", l->path);
    }
    return 0;
}

static int identify(struct session *s, const struct vm_disk *d,
                    struct qstill_error *err)
{
    for (size_t i = 0; i < s->tree.count; i++) {
        struct manifest *m = &s->tree.nodes[i];
        struct manifest_disk *md = manifest_disk(m, d->name);

        if (md && md->ino == 0 &&
            (layer_identify(m, md, err) < 0 || save(s, m, err) < 0))
            return err->code;
    }
    return 0;
}

static int mend_list(struct vm_record *rec, const struct vm_disk *d,
                     struct vm_hidden *list, size_t count, const char *format,
                     struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++) {
        struct vm_hidden *h = &list[i];

        if (!is_of(d, h->disk))
            continue;
        if (qmp_is_filter(h->format))
            h->format = arena_strdup(&rec->arena, format);
        if (!h->format)
            return err_nomem(err);
        /* what its header was is not known any more */
        layer_forget(h);
    }
    return 0;
}

/* Last: as long as it says so, all is done again. */
static int mend_record(struct session *s, struct vm_disk *d, const char *format,
                       struct qstill_error *err)
{
    struct vm_record *rec = &s->rec;
    const char *own = arena_strdup(&rec->arena, format);

    if (!own)
        return err_nomem(err);
    if (mend_list(rec, d, rec->hidden, rec->hidden_count, own, err) < 0)
        return err->code;
    for (size_t i = 0; i < rec->trash_count; i++)
        if (mend_list(rec, d, rec->trash[i].layers, rec->trash[i].layer_count,
                      own, err) < 0)
            return err->code;
    if (qmp_is_filter(d->head_format))
        d->head_format = own;
    d->attach_format = own;
    return vmrecord_save(s->vmfd, rec, err);
}

/* ----------------------------------------------------------------- the mending
 */

static int mend_disk(struct session *s, struct vm_disk *d, const char *format,
                     struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};

    if (layers_load(s, &all, err) < 0 || check_layers(s, d, &all, err) < 0)
        return err->code;
    if (mend_manifests(s, d, format, err) < 0 ||
        mend_headers(d, &all, format, err) < 0 || identify(s, d, err) < 0)
        return err->code;
    return mend_record(s, d, format, err);
}

static bool may_be_undone(const struct session *s)
{
    for (size_t i = 0; i < s->rec.trash_count; i++)
        if (s->rec.trash[i].id_count > 0)
            return true;
    return false;
}

int formats_mend(struct session *s, bool dry_run, struct buf *text,
                 struct qstill_error *err)
{
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        struct vm_disk *d = &s->rec.disks[i];
        const char *was = d->attach_format, *format, *why = NULL;

        if (!qmp_is_filter(was))
            continue;
        if (session_connect(s, err) < 0)
            return err->code;
        format = launch_format(s, d);
        if (s->qmp)
            why = "that can be mended while the VM is off";
        else if (!format)
            why = "its command line does not tell the image's own format";
        else if (s->tree.damaged_count > 0 || may_be_undone(s))
            why = "a snapshot that is damaged or in the trash may name it, too";
        if (!why && !dry_run && mend_disk(s, d, format, err) < 0)
            return err_wrap(err, "disk %s, attached as '%s'", d->name, was);
        buf_printf(text, "VM %s: disk %s was attached as '%s': %s%s\n", s->vm,
                   d->name, was,
                   why       ? why
                   : dry_run ? "will be "
                             : "is now ",
                   why ? "" : format);
    }
    if (!dry_run && !s->qmp)
        protect_all(s);
    return 0;
}
