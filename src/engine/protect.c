/* SPDX-License-Identifier: MIT */
#include "protect.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "layers.h"
#include "session.h"

/* Not through a link: what stands at the path must be the layer itself. */
static int open_layer(const char *path)
{
    return open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
}

static bool read_flags(int fd, int *flags)
{
    return fd >= 0 && ioctl(fd, FS_IOC_GETFLAGS, flags) == 0;
}

bool protect_has(const char *path)
{
    CLEANUP(closep) int fd = open_layer(path);
    int flags;

    return read_flags(fd, &flags) && (flags & FS_IMMUTABLE_FL);
}

void protect_set(const char *path)
{
    CLEANUP(closep) int fd = open_layer(path);
    int flags;

    if (!read_flags(fd, &flags) || (flags & FS_IMMUTABLE_FL))
        return;
    flags |= FS_IMMUTABLE_FL;
    if (ioctl(fd, FS_IOC_SETFLAGS, &flags) < 0)
        return; /* not ours to set: see the header */
}

int protect_clear(const char *path, struct qstill_error *err)
{
    CLEANUP(closep) int fd = open_layer(path);
    int flags;

    if (!read_flags(fd, &flags) || !(flags & FS_IMMUTABLE_FL))
        return 0;
    flags &= ~FS_IMMUTABLE_FL;
    if (ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0)
        return 0;
    err_errno(err, errno, "%s is immutable, and that cannot be taken away",
              path);
    return err_hint(err, "run qstill as root, or chattr -i the file");
}

void protect_snapshot(const struct manifest *m)
{
    for (size_t i = 0; m->protect && i < m->disk_count; i++)
        protect_set(m->disks[i].path);
}

void protect_all(const struct session *s)
{
    for (size_t i = 0; i < s->tree.count; i++)
        protect_snapshot(&s->tree.nodes[i]);
}

/* Itself, or one of the two below it: the layer that takes a hidden one in may
 * get another name, which the one above it is told. */
static bool near_hidden(const struct layer *l)
{
    for (int i = 0; l && i < 3; i++, l = l->below)
        if (l->hidden)
            return true;
    return false;
}

int protect_open_hidden(const struct layers *all, struct qstill_error *err)
{
    for (size_t i = 0; i < all->count; i++) {
        const struct layer *l = &all->items[i];

        if (near_hidden(l) && !l->trash && !l->missing &&
            protect_clear(l->path, err) < 0)
            return err->code;
    }
    return 0;
}
