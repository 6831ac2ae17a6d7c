/* SPDX-License-Identifier: MIT */
/*
 * A file that overlays stand on gets the name of one that goes. Were it renamed
 * first, they would name a file that is not there until each names the new
 * one, and a VM that a power cut ends between could not be started again by its
 * owner. So it has both names meanwhile:
 *
 *   link target to a temporary name, rename that to the result's
 *   repoint the overlays
 *   unlink the target's name
 *
 * Where the filesystem has no such links, or does not let this file have one,
 * it is renamed first, and only a recovery makes the overlays whole.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/file.h"
#include "merge_impl.h"
#include "temp_name.h"

/* Two files at first, of which one takes the name of the other. */
static bool has_two_names(const struct merge_record *r)
{
    return r->repoint_count > 0 && r->kind != MERGE_NEW_FILE &&
           r->result.id.ino != 0;
}

bool record_link(const struct io *io, const struct merge_record *r)
{
    CLEANUP(closep) int from = -1;
    CLEANUP(closep) int to = -1;
    CLEANUP(freep) char *temp = NULL;
    struct qstill_error ignored = {0};
    const char *from_name, *to_name, *temp_name;

    if (!has_two_names(r) ||
        temp_name_make(r->result.path, MERGE_TEMP, &temp, &ignored) < 0 ||
        path_open_dir(r->target.path, &from, &from_name, &ignored) < 0 ||
        path_open_dir(r->result.path, &to, &to_name, &ignored) < 0)
        return false;
    temp_name = path_base(temp);
    if (io_link(io, from, from_name, to, temp_name, &ignored) < 0)
        return false;
    if (merge_id_is(temp, &r->target.id) &&
        record_check_names(r, &ignored) == 0 &&
        io_rename(io, to, temp_name, to, to_name, 0, &ignored) == 0)
        return true;
    io_unlink(io, to, temp_name, &ignored);
    /* the name may be changed, and only not be durable */
    return merge_id_look(r->result.path, &r->target.id, true, NULL) ==
           MERGE_SAME;
}

/* A link that was not renamed any more has the target's number. */
int record_sweep_link(const struct io *io, const struct merge_record *r,
                      struct qstill_error *err)
{
    CLEANUP(closedirp) DIR *d = NULL;
    CLEANUP(freep) char *dir = path_dir(r->result.path);
    const struct dirent *e;

    if (!has_two_names(r))
        return 0;
    if (!dir)
        return err_nomem(err);
    d = opendir(dir[0] ? dir : ".");
    while (d && (e = readdir(d)) != NULL) {
        CLEANUP(freep) char *path = NULL;

        if (!temp_name_is(e->d_name, MERGE_TEMP))
            continue;
        if (asprintf(&path, "%s%s", dir, e->d_name) < 0) {
            path = NULL;
            return err_nomem(err);
        }
        if (merge_id_is(path, &r->target.id) &&
            io_unlink(io, dirfd(d), e->d_name, err) < 0)
            return err->code;
    }
    return 0;
}

struct search {
    const char *path;
    bool found;
};

static int visit(void *user, const struct overlay *o, struct qstill_error *err)
{
    struct search *s = user;

    (void)err;
    s->found |= o->backing && path_is_same_name(o->backing, s->path);
    return 0;
}

/* By this very name: by the other one it is the same file. */
static bool is_named(const struct io *io, const char *path)
{
    CLEANUP(freep) char *dir = path_dir(path);
    struct search s = {path, false};
    struct overlay_visitor v = {NULL, visit, &s};
    struct qstill_error ignored = {0};

    return !dir || children_each(io, dir, NULL, &v, &ignored) < 0 || s.found;
}

int record_unlink_old_name(const struct io *io, const struct merge_record *r,
                           bool late, struct qstill_error *err)
{
    CLEANUP(closep) int dirfd = -1;
    const char *name;

    if (!has_two_names(r) ||
        merge_id_look(r->target.path, &r->target.id, true, NULL) !=
            MERGE_SAME ||
        path_is_same_name(r->target.path, r->result.path))
        return 0;
    if (late && is_named(io, r->target.path)) {
        record_tell(r, r->target.path, "another image names it by now");
        return 0;
    }
    if (path_open_dir(r->target.path, &dirfd, &name, err) < 0)
        return err->code;
    return io_unlink(io, dirfd, name, err);
}
