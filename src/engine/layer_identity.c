/* SPDX-License-Identifier: MIT */
/* Whether an image file is still the one that it was. */
#include "layer_file.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "base_sample.h"
#include "qcow2/info.h"
#include "session.h"

/* As a JSON integer can hold it: a time before 1970 or after 2262, and an inode
 * number of 64 bits, differ from others without the highest bit as well. */
static uint64_t as_size(uint64_t value)
{
    return value & INT64_MAX;
}

static void take_stat(struct manifest_disk *d, const struct stat *st)
{
    d->dev = as_size(st->st_dev);
    d->ino = as_size(st->st_ino);
    d->file_size = (uint64_t)st->st_size;
    d->mtime_ns = as_size((uint64_t)st->st_mtim.tv_sec * 1000000000u +
                          (uint64_t)st->st_mtim.tv_nsec);
}

static int take_hash(struct arena *a, struct manifest_disk *d,
                     struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};

    if (layer_info(d->path, d->format, &info, err) < 0)
        return err->code;
    d->header_hash = arena_printf(a, "%016" PRIx64, info.header_sum);
    return d->header_hash ? 0 : err_nomem(err);
}

int layer_identify(struct manifest *m, struct manifest_disk *d,
                   struct qstill_error *err)
{
    struct stat st;

    if (stat(d->path, &st) < 0)
        return err_errno(err, errno, "cannot find %s", d->path);
    take_stat(d, &st);
    return layer_is_qcow2(d->format) ? take_hash(&m->arena, d, err) : 0;
}

/* What has no header of ours is told from another by some of its bytes. */
static void take_sample(struct arena *a, struct manifest_disk *d)
{
    struct qstill_error ignored = {0};
    char text[BASE_SAMPLE_LEN];

    if (base_sample(d->path, text, &ignored) == 0)
        d->header_hash = arena_strdup(a, text);
}

void layer_identify_base(struct arena *a, struct manifest_disk *d)
{
    struct qstill_error ignored = {0};
    struct stat st;

    if (stat(d->path, &st) < 0 || !S_ISREG(st.st_mode))
        return;
    take_stat(d, &st);
    if (layer_is_qcow2(d->format))
        take_hash(a, d, &ignored); /* QEMU may read what we cannot */
    else
        take_sample(a, d);
}

/* The number of a device may be another after each mount: it counts only where
 * there is nothing better. */
static bool is_same_inode(const struct manifest_disk *then,
                          const struct manifest_disk *now)
{
    if (now->ino != then->ino)
        return false;
    return now->dev == then->dev || then->mtime_ns;
}

/* As raw the guest would see the image's tables. A layer that a merge moved
 * into a raw file may have the hash of what it was. */
static bool is_misnamed(const struct manifest_disk *d)
{
    struct manifest scratch = {.arena = ARENA_INIT};
    struct manifest_disk now = *d;
    struct qstill_error ignored = {0};
    bool same;

    if (!d->header_hash || layer_is_qcow2(d->format))
        return false;
    now.format = "qcow2";
    same = layer_identify(&scratch, &now, &ignored) == 0 &&
           strcmp(now.header_hash, d->header_hash) == 0;
    manifest_fini(&scratch);
    return same;
}

/* tar, unless told otherwise, keeps whole seconds, and some filesystems do. */
static bool is_time_of_copy(int64_t then, int64_t now)
{
    const int64_t second = 1000000000;
    int64_t rest = then % second;

    return then &&
           (now == then || now == then - (rest < 0 ? rest + second : rest));
}

/* As a copy out of a backup is, or of a whole folder. */
static bool is_exact_copy(const struct manifest_disk *then,
                          const struct manifest_disk *now)
{
    return is_time_of_copy(then->mtime_ns, now->mtime_ns) &&
           now->file_size == then->file_size &&
           (!then->header_hash ||
            (now->header_hash &&
             strcmp(now->header_hash, then->header_hash) == 0));
}

enum change { SAME, REPLACED, OTHER_HEADER, WRITTEN };

static enum change change_of(const struct manifest_disk *then,
                             const struct manifest_disk *now)
{
    /* the number of an inode that was freed is given out again */
    bool copy = then->ino && is_exact_copy(then, now);

    if (then->ino && !is_same_inode(then, now) && !copy)
        return REPLACED;
    if (then->header_hash && now->header_hash &&
        strcmp(now->header_hash, then->header_hash) != 0)
        return OTHER_HEADER;
    if (then->mtime_ns && !copy &&
        (now->mtime_ns != then->mtime_ns || now->file_size != then->file_size))
        return WRITTEN;
    return SAME;
}

int layer_check(const struct manifest_disk *d, struct qstill_error *err)
{
    static const char *const what[] = {
        [REPLACED] = "is another file than the one that was frozen",
        [OTHER_HEADER] = "has another header than when it was frozen",
        [WRITTEN] = "was written to after it was frozen",
    };
    struct manifest scratch = {.arena = ARENA_INIT};
    struct manifest_disk now = *d;
    enum change change;
    struct stat st;
    int r;

    /* attach resolved the path, so no link stood there */
    if (lstat(d->path, &st) == 0 && S_ISLNK(st.st_mode)) {
        err_set(err, QSTILL_E_CORRUPT, "disk %s: %s is a symbolic link now",
                d->name, d->path);
        return err_hint(err, "bring the original file back");
    }
    if (is_misnamed(d)) {
        err_set(err, QSTILL_E_CORRUPT,
                "disk %s: %s is a qcow2 image, not %.16s as the snapshot says",
                d->name, d->path, d->format);
        return err_hint(err, "bring the store's files back from a backup");
    }
    r = layer_identify(&scratch, &now, err);
    change = r == 0 ? change_of(d, &now) : SAME;
    if (change != SAME) {
        r = err_set(err, QSTILL_E_CORRUPT, "disk %s: %s %s", d->name, d->path,
                    what[change]);
        err_hint(err, "bring the original file back, or take it as it is: "
                      "qstill recover --force");
    } else if (r == QSTILL_E_NOT_FOUND) {
        err_set(err, QSTILL_E_NOT_FOUND,
                "disk %s: the frozen layer %s is "
                "gone",
                d->name, d->path);
        r = err_hint(err, "bring the file back from a backup");
    }
    manifest_fini(&scratch);
    return r;
}

int layer_check_base(const struct manifest_disk *then,
                     const struct manifest_disk *now, struct qstill_error *err)
{
    static const char *const what[] = {
        [REPLACED] = "is another file than",
        [OTHER_HEADER] = "has another header than",
        [WRITTEN] = "was written to after",
    };
    enum change change = then->ino ? change_of(then, now) : SAME;

    if (change == SAME)
        return 0;
    if (change == OTHER_HEADER && !layer_is_qcow2(then->format))
        return err_set(err, QSTILL_E_CORRUPT,
                       "%s has another content than when the snapshot was made",
                       now->path);
    return err_set(err, QSTILL_E_CORRUPT, "%s %s%s the snapshot was made",
                   now->path, what[change], change == WRITTEN ? "" : " when");
}

int layer_identify_hidden(struct vm_record *rec, struct vm_hidden *h,
                          struct qstill_error *err)
{
    struct manifest scratch = {.arena = ARENA_INIT};
    struct manifest_disk d = {
        .name = h->disk, .path = h->path, .format = h->format};

    if (layer_identify(&scratch, &d, err) == 0) {
        h->dev = d.dev;
        h->ino = d.ino;
        h->file_size = d.file_size;
        h->mtime_ns = d.mtime_ns;
        h->header_hash =
            d.header_hash ? arena_strdup(&rec->arena, d.header_hash) : NULL;
        if (d.header_hash && !h->header_hash)
            err_nomem(err);
    }
    manifest_fini(&scratch);
    return err->code;
}

static bool is_head(const struct session *s, const char *path)
{
    for (size_t i = 0; i < s->rec.disk_count; i++)
        if (strcmp(s->rec.disks[i].head_path, path) == 0)
            return true;
    return false;
}

void layer_forget(struct vm_hidden *h)
{
    h->ino = h->dev = h->file_size = h->mtime_ns = 0;
    h->header_hash = NULL;
}

int layer_identify_as(struct manifest *m, struct manifest_disk *d,
                      const struct vm_hidden *h, struct qstill_error *err)
{
    if (h->ino == 0)
        return layer_identify(m, d, err);
    d->dev = h->dev;
    d->ino = h->ino;
    d->file_size = h->file_size;
    d->mtime_ns = h->mtime_ns;
    d->header_hash =
        h->header_hash ? arena_strdup(&m->arena, h->header_hash) : NULL;
    return d->header_hash || !h->header_hash ? 0 : err_nomem(err);
}

struct vm_hidden layer_hidden(const struct manifest_disk *d)
{
    return (struct vm_hidden){.disk = d->name,
                              .path = d->path,
                              .format = d->format,
                              .dev = d->dev,
                              .ino = d->ino,
                              .file_size = d->file_size,
                              .mtime_ns = d->mtime_ns,
                              .header_hash = d->header_hash};
}

static int check_noted(const struct session *s, const struct vm_hidden *h,
                       const char *what, struct qstill_error *err)
{
    struct manifest_disk d = {.name = h->disk,
                              .path = h->path,
                              .format = h->format,
                              .dev = h->dev,
                              .ino = h->ino,
                              .file_size = h->file_size,
                              .mtime_ns = h->mtime_ns,
                              .header_hash = h->header_hash};

    if (h->ino == 0 || layer_check(&d, err) == 0)
        return 0;
    if (err->code == QSTILL_E_NOT_FOUND || is_head(s, h->path) ||
        tree_owner(&s->tree, h->path))
        return err_clear(err);
    return err_wrap(err, "%s", what);
}

int layer_check_hidden(const struct session *s, const struct vm_hidden *h,
                       struct qstill_error *err)
{
    return check_noted(s, h, "a layer of a deleted snapshot", err);
}

int layer_check_trash(const struct session *s, const struct vm_hidden *h,
                      struct qstill_error *err)
{
    return check_noted(s, h, "a layer that is kept for undo", err);
}

int layer_check_unnamed(const struct session *s, const char *path,
                        struct qstill_error *err)
{
    const struct vm_record *rec = &s->rec;

    for (size_t i = 0; i < rec->hidden_count; i++)
        if (strcmp(rec->hidden[i].path, path) == 0)
            return layer_check_hidden(s, &rec->hidden[i], err);
    for (size_t i = 0; i < rec->trash_count; i++)
        for (size_t k = 0; k < rec->trash[i].layer_count; k++)
            if (strcmp(rec->trash[i].layers[k].path, path) == 0)
                return layer_check_trash(s, &rec->trash[i].layers[k], err);
    return 0;
}
