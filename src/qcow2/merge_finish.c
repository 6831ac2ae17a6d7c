/* SPDX-License-Identifier: MIT */
/*
 * The end of a group, by its record alone: attributes, rename, repoint,
 * unlink. Each step may find itself done already.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "attrs.h"
#include "merge_impl.h"
#include "removable.h"
#include "repoint.h"

static bool same_file(const char *path, struct merge_id id)
{
    struct stat st;

    return stat(path, &st) == 0 && st.st_dev == id.dev && st.st_ino == id.ino;
}

/* The result belongs to whoever the upper image belonged to. */
static int give_attrs(const struct io *io, const struct merge_record *r,
                      const char *path, struct qstill_error *err)
{
    CLEANUP(closep) int from = -1;
    CLEANUP(closep) int to = -1;

    if (!r->upper.path || !same_file(r->upper.path, r->upper.id))
        return 0;
    if (io_openat(io, AT_FDCWD, r->upper.path, O_RDONLY, 0, &from, err) < 0 ||
        io_openat(io, AT_FDCWD, path, O_RDWR, 0, &to, err) < 0 ||
        attrs_copy(io, from, to, path, err) < 0)
        return err->code;
    return io_sync(io, to, path, err);
}

/* Why the name of a file could not be taken from it, if that can be told. */
static int explain(const char *path, struct qstill_error *err)
{
    struct qstill_error why = {0};

    if (removable_check(path, &why) < 0)
        *err = why;
    return err->code;
}

/* The directory's project was changed since the plan. */
static bool take_project(const struct io *io, const struct merge_record *r)
{
    CLEANUP(closep) int fd = -1;
    struct qstill_error ignored = {0};

    return io_openat(io, AT_FDCWD, r->target.path, O_RDONLY, 0, &fd,
                     &ignored) == 0 &&
           removable_take_project(fd, r->result.path);
}

static int rename_result(const struct io *io, const struct merge_record *r,
                         struct qstill_error *err)
{
    CLEANUP(closep) int from = -1;
    CLEANUP(closep) int to = -1;
    const char *from_name, *to_name;

    if (path_open_dir(r->target.path, &from, &from_name, err) < 0 ||
        path_open_dir(r->result.path, &to, &to_name, err) < 0)
        return err->code;
    if (io_rename(io, from, from_name, to, to_name, 0, err) == 0)
        return 0;
    if (take_project(io, r) && err_clear(err) == 0 &&
        io_rename(io, from, from_name, to, to_name, 0, err) == 0)
        return 0;
    return explain(r->target.path, err) == err->code
               ? explain(r->result.path, err)
               : err->code;
}

static int repoint_one(const struct io *io, const struct merge_repoint *p,
                       struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (io_openat(io, AT_FDCWD, p->file.path, O_RDWR, 0, &fd, err) < 0 ||
        image_lock(fd, p->file.path, IMAGE_LOCK_WRITE, err) < 0)
        return err->code;
    return qcow2_repoint(io, fd, p->file.path, p->backing, p->format, err);
}

static int remove_one(const struct io *io, const struct merge_file *f,
                      uint64_t *freed, struct qstill_error *err)
{
    CLEANUP(closep) int dirfd = -1;
    const char *name;
    struct stat st;

    /* gone already, or another file by now */
    if (lstat(f->path, &st) < 0 || st.st_dev != f->id.dev ||
        st.st_ino != f->id.ino)
        return 0;
    if (path_open_dir(f->path, &dirfd, &name, err) < 0)
        return err->code;
    if (io_unlink(io, dirfd, name, err) < 0)
        return explain(f->path, err);
    *freed += (uint64_t)st.st_blocks * 512;
    return 0;
}

int record_finish(const struct io *io, const struct merge_record *r,
                  uint64_t *freed, struct qstill_error *err)
{
    struct merge_id id = r->kind == MERGE_NEW_FILE ? r->made : r->target.id;
    bool named = same_file(r->result.path, id);
    struct stat st;

    if (give_attrs(io, r, named ? r->result.path : r->target.path, err) < 0)
        return err->code;
    if (!named) {
        uint64_t replaced = 0;

        if (r->result.id.ino && stat(r->result.path, &st) == 0)
            replaced = (uint64_t)st.st_blocks * 512;
        if (rename_result(io, r, err) < 0)
            return err->code;
        *freed += replaced;
    }
    for (size_t i = 0; i < r->repoint_count; i++)
        if (repoint_one(io, &r->repoint[i], err) < 0)
            return err->code;
    for (size_t i = 0; i < r->gone_count; i++)
        if (remove_one(io, &r->gone[i], freed, err) < 0)
            return err->code;
    return 0;
}
