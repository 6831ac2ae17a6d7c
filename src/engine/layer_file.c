/* SPDX-License-Identifier: MIT */
#include "layer_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/giveback.h"
#include "base/publish.h"
#include "layer_name.h"
#include "protect.h"
#include "qcow2/chain.h"
#include "qcow2/compare.h"
#include "qcow2/create.h"
#include "qcow2/info.h"
#include "qcow2/lock.h"
#include "session.h"

#define LAYER_FORMAT "qcow2"

bool layer_is_qcow2(const char *format)
{
    return strcmp(format, LAYER_FORMAT) == 0;
}

/* ------------------------------------------------------------------- files */

/* Splits a path; "" becomes ".". */
static int open_parent(const char *path, const char **name, int *dirfd,
                       struct qstill_error *err)
{
    CLEANUP(freep) char *copy = strdup(path);
    char *slash;
    int fd;

    if (!copy)
        return err_nomem(err);
    slash = strrchr(copy, '/');
    *name = slash ? path + (slash - copy) + 1 : path;
    if (slash)
        slash[slash == copy ? 1 : 0] = '\0';
    fd = open(slash ? copy : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "cannot open the directory of %s", path);
    *dirfd = fd;
    return 0;
}

/* Takes lockfd over: it is closed when the name is gone, for the room is given
 * back bit by bit only of a file that nobody else has open. */
static int remove_file(const char *path, int lockfd,
                       int (*unlink_it)(int dirfd, const char *name,
                                        struct qstill_error *err),
                       struct qstill_error *err)
{
    CLEANUP(closep) int lock = lockfd;
    CLEANUP(closep) int dirfd = -1;
    const char *name = NULL;
    int fd;

    if (protect_clear(path, err) < 0 ||
        open_parent(path, &name, &dirfd, err) < 0)
        return err->code;
    fd = giveback_open(dirfd, name);
    if (unlink_it(dirfd, name, err) < 0) {
        closep(&fd);
        return err_wrap(err, "%s", path);
    }
    if (lock >= 0)
        close(take_fd(&lock));
    giveback_close(fd);
    return 0;
}

int layer_remove(const char *path, struct qstill_error *err)
{
    return remove_file(path, -1, publish_unlink, err);
}

/* Locked until the fd is closed; -1 when there is no such file. */
static int lock_unused(const char *path, int *out, struct qstill_error *err)
{
    CLEANUP(closep)
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0 && errno != ENOENT)
        return err_errno(err, errno, "cannot see who uses %s", path);
    if (fd >= 0 && image_lock(fd, path, IMAGE_LOCK_EXCLUSIVE, err) < 0)
        return err->code;
    *out = take_fd(&fd);
    return 0;
}

int layer_check_unused(const char *path, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    return lock_unused(path, &fd, err);
}

int layer_remove_unused(const char *path, struct qstill_error *err)
{
    int fd = -1;

    return lock_unused(path, &fd, err) < 0
               ? err->code
               : remove_file(path, fd, publish_unlink_later, err);
}

int layer_sync_dir(const char *path, struct qstill_error *err)
{
    CLEANUP(closep) int dirfd = -1;
    const char *name = NULL;

    if (open_parent(path, &name, &dirfd, err) < 0)
        return err->code;
    return publish_sync_dir(dirfd, err);
}

int layer_sync(const char *path, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (file_openat(AT_FDCWD, path, O_RDONLY, 0, &fd, err) < 0)
        return err->code;
    if (fsync(fd) < 0)
        return err_errno(err, errno, "cannot sync %s", path);
    return 0;
}

static int compare_all(struct compare *c, struct qstill_error *err)
{
    bool done = false;

    while (!done)
        if (compare_step(c, &done, err) < 0)
            return err->code;
    return 0;
}

int layer_compare(const char *a, const char *b, struct qstill_error *err)
{
    CLEANUP(compare_closep) struct compare *c = NULL;
    struct chain *x = NULL, *y = NULL;
    uint64_t at = 0;

    if (chain_open_foreign(&x, io_real(), a, QCOW2_FORMAT_QCOW2, err) < 0)
        return err->code;
    if (chain_open_foreign(&y, io_real(), b, QCOW2_FORMAT_QCOW2, err) < 0) {
        chain_close(x);
        return err->code;
    }
    if (compare_open(&c, x, y, err) < 0 ||
        compare_load(c, (struct aio_stop){0}, err) < 0 ||
        compare_all(c, err) < 0)
        return err->code;
    if (!compare_equal(c, &at))
        return err_set(err, QSTILL_E_CORRUPT,
                       "%s does not read as %s does, from byte %llu on", b, a,
                       (unsigned long long)at);
    return 0;
}

int layer_create(struct session *s, const struct vm_disk *d,
                 uint64_t virtual_size, const char *backing,
                 const char *backing_format, const char *disk_dir,
                 const char *tag, const char **path, struct qstill_error *err)
{
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    const char *new_path = NULL;
    CLEANUP(closep) int like = -1;
    struct stat st;

    if (layer_new_path(s, d, disk_dir, tag, &new_path, err) < 0)
        return err->code;
    if (stat(backing, &st) < 0)
        return err_errno(err, errno, "cannot find %s", backing);
    like = open(backing, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    o.like = like;
    o.virtual_size = virtual_size;
    o.backing = backing;
    o.backing_format = backing_format;
    /* 0600, so it must be QEMU's own; only root can give files away. */
    if (geteuid() == 0) {
        o.uid = s->rec.has_launch ? s->rec.launch.uid : st.st_uid;
        o.gid = s->rec.has_launch ? s->rec.launch.gid : st.st_gid;
    }
    if (qcow2_create(io_real(), AT_FDCWD, new_path, &o, err) < 0)
        return err->code;
    *path = new_path;
    return 0;
}

int layer_info(const char *path, const char *format, struct qcow2_info *info,
               struct qstill_error *err)
{
    enum qcow2_format f;

    if (qcow2_format_parse(format, &f, err) < 0)
        return err->code;
    return qcow2_info_read(io_real(), AT_FDCWD, path, f, info, err);
}

void layer_backing_fini(struct layer_backing *b)
{
    free(b->path);
    free(b->json);
    *b = (struct layer_backing){0};
}

int layer_backing_read(const char *path, struct layer_backing *out,
                       struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};

    *out = (struct layer_backing){0};
    if (layer_info(path, "qcow2", &info, err) < 0)
        return err->code;
    out->any = info.header.has_backing;
    if (!out->any)
        return 0;
    if (info.header.has_format)
        snprintf(out->format, sizeof(out->format), "%s",
                 info.header.backing_format);
    if (strncmp(info.header.backing, "json:", 5) == 0) {
        out->json = strdup(info.header.backing + 5);
        return out->json ? 0 : err_nomem(err);
    }
    if (chain_resolve(path, info.header.backing, &out->path, err) < 0)
        return err->code == QSTILL_E_PRECONDITION ? err_clear(err) : err->code;
    return 0;
}

int layer_virtual_size(const char *path, const char *format, uint64_t *size,
                       struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    struct qstill_error ignored = {0};
    enum qcow2_format f;

    *size = 0;
    if (qcow2_format_parse(format, &f, &ignored) < 0)
        return 0;
    if (layer_info(path, format, &info, err) < 0)
        return err_wrap(err, "%s", path);
    *size = info.virtual_size;
    return 0;
}

int layer_is_empty(const char *path, const char *format, bool *empty,
                   struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    CLEANUP(closep) int fd = -1;
    CLEANUP(freep) uint8_t *l1 = NULL;
    size_t len;

    *empty = false;
    if (!layer_is_qcow2(format))
        return 0;
    if (layer_info(path, format, &info, err) < 0 ||
        file_openat(AT_FDCWD, path, O_RDONLY, 0, &fd, err) < 0)
        return err->code;
    len = (size_t)info.header.l1_size * 8;
    l1 = malloc(len ? len : 1);
    if (!l1)
        return err_nomem(err);
    if (file_read_full(fd, l1, len, info.header.l1_offset, err) < 0)
        return err_wrap(err, "%s", path);
    *empty = true;
    for (size_t i = 0; i < len; i += 8)
        if (get_be64(l1 + i) != 0)
            *empty = false;
    return 0;
}
