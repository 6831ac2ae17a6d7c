/* SPDX-License-Identifier: MIT */
/*
 * The end of a group, by its record alone: attributes, rename (merge_link.c:
 * or a second name), repoint, unlink. Each step may find itself done already.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "attrs.h"
#include "chain.h"
#include "info.h"
#include "merge_impl.h"
#include "removable.h"
#include "repoint.h"

static bool is_there(const struct merge_file *f)
{
    return merge_id_look(f->path, &f->id, true, NULL) == MERGE_SAME;
}

static const struct merge_id *result_id(const struct merge_record *r)
{
    return r->kind == MERGE_NEW_FILE ? &r->made : &r->target.id;
}

static int taken(const char *path, struct qstill_error *err)
{
    bool gone = merge_id_look(path, NULL, false, NULL) == MERGE_ABSENT;

    err_set(err, QSTILL_E_BUSY,
            gone ? "%s was moved or removed meanwhile"
                 : "%s was replaced by another file meanwhile",
            path);
    return err_hint(err, "give it back its name, then merge again: first of "
                         "all that goes on with this merge");
}

int record_check_target(const struct merge_record *r, struct qstill_error *err)
{
    return merge_id_is(r->target.path, result_id(r))
               ? 0
               : taken(r->target.path, err);
}

int record_check_names(const struct merge_record *r, struct qstill_error *err)
{
    if (record_check_target(r, err) < 0)
        return err->code;
    if (r->result.id.ino == 0 || merge_id_is(r->result.path, &r->result.id))
        return 0;
    taken(r->result.path, err);
    return err_hint(err,
                    "what is there stays, and %s shows what was there; give it "
                    "back its name if need be, and merge again",
                    r->target.path);
}

int record_check_upper(const struct merge_record *r, struct qstill_error *err)
{
    return !r->upper.path || is_there(&r->upper) ? 0
                                                 : taken(r->upper.path, err);
}

int record_check_done(const struct merge_record *r, struct qstill_error *err)
{
    return r->result.path && merge_id_look(r->result.path, result_id(r), true,
                                           NULL) == MERGE_OTHER
               ? taken(r->result.path, err)
               : 0;
}

/* What its name leads to is asked of the file that is open. */
static int open_same(const struct io *io, const char *path, int flags,
                     const struct merge_id *id, int *fd,
                     struct qstill_error *err)
{
    CLEANUP(closep) int it = -1;
    struct merge_id now;

    if (io_openat(io, AT_FDCWD, path, flags, 0, &it, err) < 0 ||
        merge_id_of(it, &now, err) < 0)
        return err->code;
    if (!merge_id_same(id, &now))
        return taken(path, err);
    *fd = take_fd(&it);
    return 0;
}

/* The result belongs to whoever the upper image belonged to. */
static int give_attrs(const struct io *io, const struct merge_record *r,
                      const char *path, struct qstill_error *err)
{
    CLEANUP(closep) int from = -1;
    CLEANUP(closep) int to = -1;

    if (!is_there(&r->upper))
        return 0;
    if (open_same(io, r->upper.path, O_RDONLY, &r->upper.id, &from, err) < 0 ||
        open_same(io, path, O_RDWR, result_id(r), &to, err) < 0 ||
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

    return open_same(io, r->target.path, O_RDONLY, result_id(r), &fd,
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
        path_open_dir(r->result.path, &to, &to_name, err) < 0 ||
        record_check_names(r, err) < 0)
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

/* Whether a path leads to the file, or to the name that it had. */
static bool leads_to(const char *path, const struct merge_file *f)
{
    if (!f->path)
        return false;
    return merge_id_look(path, &f->id, true, NULL) == MERGE_SAME ||
           path_is_same_name(path, f->path);
}

/* Another image may have its name by now, or it another backing file. */
static int is_heir(const struct io *io, const struct merge_record *r,
                   const struct merge_repoint *p, bool *yes,
                   struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    CLEANUP(freep) char *backing = NULL;
    struct qstill_error why = {0};

    *yes = false;
    if (merge_id_look(p->file.path, NULL, true, NULL) == MERGE_ABSENT)
        return 0;
    if (qcow2_info_read(io, AT_FDCWD, p->file.path, QCOW2_FORMAT_QCOW2, &info,
                        err) < 0)
        return err->code;
    if (!info.header.has_backing)
        return 0;
    *yes = strcmp(info.header.backing, p->backing) == 0 ||
           (chain_resolve(p->file.path, info.header.backing, &backing, &why) ==
                0 &&
            (leads_to(backing, &r->upper) || leads_to(backing, &r->target)));
    return 0;
}

int record_is_repointed(const struct io *io, const struct merge_record *r,
                        bool *yes, struct qstill_error *err)
{
    *yes = false;
    for (size_t i = 0; i < r->repoint_count && !*yes; i++) {
        const struct merge_repoint *p = &r->repoint[i];
        CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};

        if (!merge_id_is(p->file.path, &p->file.id))
            continue;
        if (qcow2_info_read(io, AT_FDCWD, p->file.path, QCOW2_FORMAT_QCOW2,
                            &info, err) < 0)
            return err->code;
        *yes = info.header.has_backing &&
               strcmp(info.header.backing, p->backing) == 0;
    }
    return 0;
}

static int repoint_one(const struct io *io, const struct merge_record *r,
                       const struct merge_repoint *p, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    bool yes;

    if (is_heir(io, r, p, &yes, err) < 0 || !yes)
        return err->code;
    if (io_openat(io, AT_FDCWD, p->file.path, O_RDWR, 0, &fd, err) < 0 ||
        image_lock(fd, p->file.path, IMAGE_LOCK_WRITE, err) < 0)
        return err->code;
    return qcow2_repoint(io, fd, p->file.path, p->backing, p->format, err);
}

/* ------------------------------------------------- who stands on it by now */

struct search {
    const struct merge_file *of;
    const struct merge_record *r; /* its own files are none; or NULL */
    bool found;
};

/* Those that go, and those that are about to be given the result's name. */
static bool is_own(const struct merge_record *r, const char *path)
{
    bool own = merge_id_is(path, &r->result.id);

    for (size_t i = 0; i < r->gone_count && !own; i++)
        own = merge_id_is(path, &r->gone[i].id);
    for (size_t i = 0; i < r->repoint_count && !own; i++)
        own = path_is_same_name(path, r->repoint[i].file.path);
    return own;
}

static int visit(void *user, const struct overlay *o, struct qstill_error *err)
{
    struct search *s = user;

    (void)err;
    if (o->backing &&
        merge_id_look(o->backing, &s->of->id, true, NULL) == MERGE_SAME &&
        !(s->r && is_own(s->r, o->path)))
        s->found = true;
    return 0;
}

/* An overlay in the file's directory, or one that cannot be told to be none. */
static bool has_overlay(const struct io *io, const struct merge_file *of,
                        const struct merge_record *r)
{
    CLEANUP(freep) char *dir = path_dir(of->path);
    struct search s = {of, r, false};
    struct overlay_visitor v = {NULL, visit, &s};
    struct qstill_error ignored = {0};

    return !dir || children_each(io, dir, NULL, &v, &ignored) < 0 || s.found;
}

/* Likewise of a living merge: of one of those that are about to go, made since
 * there was a way back. */
static int visit_gone(void *user, const struct overlay *o,
                      struct qstill_error *err)
{
    struct search *s = user;
    const struct merge_record *r = s->r;

    for (size_t i = 0; o->backing && i < r->gone_count; i++) {
        if (merge_id_look(o->backing, &r->gone[i].id, true, NULL) !=
                MERGE_SAME ||
            is_own(r, o->path))
            continue;
        s->found = true;
        return err_set(err, QSTILL_E_BUSY,
                       "%s was made meanwhile, and stands on %s", o->path,
                       r->gone[i].path);
    }
    return 0;
}

static int check_gone(const struct io *io, const struct merge_record *r,
                      struct qstill_error *err)
{
    struct search s = {NULL, r, false};
    struct overlay_visitor v = {NULL, visit_gone, &s};

    for (size_t i = 0; i < r->gone_count; i++) {
        CLEANUP(freep) char *dir = path_dir(r->gone[i].path);

        if (!dir)
            return err_nomem(err);
        if (i > 0 && path_same_dir(r->gone[i - 1].path, r->gone[i].path))
            continue;
        if (children_each(io, dir, r->seen, &v, err) < 0 && s.found)
            return err_hint(err, "both stay: merge again");
        err_clear(err); /* the plan had what cannot be read, too */
    }
    return 0;
}

bool record_may_rename(const struct io *io, const struct merge_record *r)
{
    return r->kind == MERGE_NEW_FILE || !has_overlay(io, &r->target, r);
}

/* What was only read has another time when it was written to since the merge
 * died. (A living one has had its lock all the while: there another time is
 * that of a touch, or of a backup program.) In a fold that is the upper image
 * alone; the layers between bear a mark, which we have written, and which keeps
 * others from writing. */
static bool is_as_it_was(const struct merge_record *r,
                         const struct merge_file *f)
{
    struct merge_id now;

    if (merge_id_look(f->path, &f->id, false, &now) != MERGE_SAME)
        return false;
    if (r->kind == MERGE_OVERWRITE &&
        !(r->upper.path && strcmp(f->path, r->upper.path) == 0))
        return true;
    return f->id.mtime_ns == 0 || f->id.mtime_ns == now.mtime_ns;
}

void record_tell(const struct merge_record *r, const char *path,
                 const char *why)
{
    if (r->told)
        buf_printf(r->told,
                   "note: %s stays: an unfinished merge was to take it away, "
                   "but %s\n",
                   path, why);
}

/* It is gone already, or another file has its name by now; or somebody has gone
 * back to it since, and it is his. */
static int remove_one(const struct io *io, const struct merge_record *r,
                      const struct merge_file *f, bool late, uint64_t *freed,
                      struct qstill_error *err)
{
    CLEANUP(closep) int dirfd = -1;
    const char *name;
    struct stat st;

    if (!merge_id_is(f->path, &f->id) || lstat(f->path, &st) < 0)
        return 0;
    if (late && !is_as_it_was(r, f)) {
        record_tell(r, f->path, "it was written to since");
        return 0;
    }
    if (late && has_overlay(io, f, NULL)) {
        record_tell(r, f->path, "another image stands on it by now");
        return 0;
    }
    if (path_open_dir(f->path, &dirfd, &name, err) < 0)
        return err->code;
    if (io_unlink(io, dirfd, name, err) < 0)
        return explain(f->path, err);
    *freed += (uint64_t)st.st_blocks * 512;
    return 0;
}

/* The file has the result's name, and nobody needs what goes. */
static int may_remove(const struct io *io, const struct merge_record *r,
                      bool late, struct qstill_error *err)
{
    if (merge_id_look(r->result.path, result_id(r), true, NULL) != MERGE_SAME)
        return taken(r->result.path, err);
    return late ? 0 : check_gone(io, r, err);
}

int record_finish(const struct io *io, const struct merge_record *r, bool late,
                  uint64_t *freed, struct qstill_error *err)
{
    bool named =
        merge_id_look(r->result.path, result_id(r), true, NULL) == MERGE_SAME;
    struct stat st;

    if ((!named && record_check_names(r, err) < 0) ||
        give_attrs(io, r, named ? r->result.path : r->target.path, err) < 0)
        return err->code;
    if (!named) {
        uint64_t replaced = 0;

        if (r->result.id.ino && stat(r->result.path, &st) == 0)
            replaced = (uint64_t)st.st_blocks * 512;
        if (!record_link(io, r) && rename_result(io, r, err) < 0)
            return err->code;
        *freed += replaced;
    }
    for (size_t i = 0; i < r->repoint_count; i++)
        if (repoint_one(io, r, &r->repoint[i], err) < 0)
            return err->code;
    if (may_remove(io, r, late, err) < 0 ||
        record_unlink_old_name(io, r, late, err) < 0)
        return err->code;
    for (size_t i = 0; i < r->gone_count; i++)
        if (remove_one(io, r, &r->gone[i], late, freed, err) < 0)
            return err->code;
    return 0;
}
