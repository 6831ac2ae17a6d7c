/* SPDX-License-Identifier: MIT */
#include "layer_name.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "session.h"

/* The stem of the disk's first image: "root" of "/vm/root.qcow2". */
static char *stem_of(struct arena *a, const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    size_t len = dot && dot != name ? (size_t)(dot - name) : strlen(name);

    /* room for the id, both dots and the ending in NAME_MAX */
    if (len > 200)
        len = 200;
    return arena_printf(a, "%.*s", (int)len, name);
}

/* Of an absolute path; "/" of "/image". */
static const char *dir_of(struct arena *a, const char *path)
{
    size_t len = (size_t)(strrchr(path, '/') - path);

    return arena_printf(a, "%.*s", len ? (int)len : 1, path);
}

/* `more` tells the stem from that of another disk. */
static int path_of(struct session *s, const struct vm_disk *d,
                   const char *disk_dir, const char *more, const char *tag,
                   const char **path, struct qstill_error *err)
{
    struct arena *a = &s->rec.arena;
    const char *base = session_first_image(&s->rec, d);
    char *stem = base ? stem_of(a, base) : NULL;
    CLEANUP(freep) char *dir = NULL;

    if (!stem)
        return err_nomem(err);
    if (!disk_dir) /* QEMU's working directory may not be known */
        disk_dir = dir_of(a, base[0] == '/' ? base : d->head_path);
    if (!disk_dir)
        return err_nomem(err);
    /* The real name: a link on the way may point elsewhere later. */
    dir = realpath(disk_dir, NULL);
    if (!dir)
        return err_errno(err, errno, "directory %s of disk %s", disk_dir,
                         d->name);
    *path = arena_printf(a, "%s/%s%s.%s.qcow2",
                         strcmp(dir, "/") == 0 ? "" : dir, stem, more, tag);
    return *path ? 0 : err_nomem(err);
}

/* Whether the path is that of one of the first n disks, `but` one. */
static bool is_of_another(struct session *s, size_t n, size_t but,
                          const char *disk_dir, const char *tag,
                          const char *path)
{
    for (size_t i = 0; i < n; i++) {
        struct qstill_error ignored;
        const char *other;

        if (i != but &&
            path_of(s, &s->rec.disks[i], disk_dir, "", tag, &other, &ignored) ==
                0 &&
            strcmp(other, path) == 0)
            return true;
    }
    return false;
}

int layer_path_in(struct session *s, const struct vm_disk *d, const char *dir,
                  const char *tag, const char **path, struct qstill_error *err)
{
    return path_of(s, d, dir, "", tag, path, err);
}

/* "vm.TAG.qcow2" of vm.qcow2 is "vm-2.TAG.qcow2" of vm.img beside it, the
 * second disk. */
int layer_new_path(struct session *s, const struct vm_disk *d,
                   const char *disk_dir, const char *tag, const char **path,
                   struct qstill_error *err)
{
    size_t n = s->rec.disk_count, me = 0;
    const char *more = "";

    while (me < n && strcmp(s->rec.disks[me].name, d->name) != 0)
        me++;
    if (path_of(s, d, disk_dir, more, tag, path, err) < 0)
        return err->code;
    if (!is_of_another(s, me, n, disk_dir, tag, *path))
        return 0;
    do {
        more = arena_printf(&s->rec.arena, "%s-%zu", more, me + 1);
        if (!more)
            return err_nomem(err);
        if (path_of(s, d, disk_dir, more, tag, path, err) < 0)
            return err->code;
    } while (is_of_another(s, n, me, disk_dir, tag, *path));
    return 0;
}
