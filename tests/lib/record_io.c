/* SPDX-License-Identifier: MIT */
#include "record_io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "memio_dir.h"
#include "record_impl.h"

static struct record *record_of(const struct io *io)
{
    return io->user;
}

static void *grow(void *array, size_t count, size_t size)
{
    /* room for the next power of two */
    if (count & (count - 1))
        return array;
    array = realloc(array, (count ? count * 2 : 1) * size);
    if (!array)
        memio_die("recorder: out of memory");
    return array;
}

static struct record_op *add(struct record *r, enum record_type type, int node)
{
    struct record_op *op;

    r->ops = grow(r->ops, r->op_count, sizeof(*r->ops));
    op = &r->ops[r->op_count++];
    *op = (struct record_op){.type = type, .node = node};
    return op;
}

const char *record_node_path(const struct record *r, int node)
{
    char name[32];

    snprintf(name, sizeof(name), "%llu",
             (unsigned long long)r->nodes[node].ino);
    return memio_path(r->nodes_dir, name);
}

int record_find_node(const struct record *r, const struct stat *st)
{
    for (size_t i = r->node_count; i-- > 0;) {
        if (r->nodes[i].dev == st->st_dev && r->nodes[i].ino == st->st_ino)
            return (int)i;
    }
    return -1;
}

static int node_new(struct record *r, const struct stat *st)
{
    r->nodes = grow(r->nodes, r->node_count, sizeof(*r->nodes));
    r->nodes[r->node_count] = (struct record_node){
        .dev = st->st_dev, .ino = st->st_ino, .mtime = st->st_mtim};
    return (int)r->node_count++;
}

static int node_of_fd(struct record *r, int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        memio_die("recorder: bad descriptor %d", fd);
    return node_new(r, &st);
}

/* An operation that sets the file's time. */
static struct record_op *add_content(struct record *r, enum record_type type,
                                     int node, int fd)
{
    struct record_op *op = add(r, type, node);
    struct stat st;

    if (fstat(fd, &st) == 0)
        op->mtime = st.st_mtim;
    return op;
}

/* -1: a file outside of the watched directory. */
static int node_of(const struct record *r, int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        memio_die("recorder: bad descriptor %d", fd);
    return record_find_node(r, &st);
}

/* The path of an open directory or of a name below it, relative to the
 * watched one; NULL when it lies outside. malloc'ed. */
static char *relative(const struct record *r, int dirfd, const char *name)
{
    char link[64], dir[4096], *full, *out = NULL;
    size_t skip = strlen(r->dir);
    ssize_t n;

    if (name && name[0] == '/') {
        full = strdup(name);
    } else {
        snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd);
        if (dirfd == AT_FDCWD)
            strcpy(link, "/proc/self/cwd");
        n = readlink(link, dir, sizeof(dir) - 1);
        if (n < 0)
            memio_die("recorder: bad directory descriptor %d", dirfd);
        dir[n] = '\0';
        if (asprintf(&full, "%s%s%s", dir, name ? "/" : "", name ? name : "") <
            0)
            memio_die("recorder: out of memory");
    }
    if (strncmp(full, r->dir, skip) == 0 &&
        (full[skip] == '/' || full[skip] == '\0'))
        out = strdup(full + skip + (full[skip] == '/'));
    free(full);
    return out;
}

/* ------------------------------------------------------- what loses a name */

/* The path of a second name for a file that is about to lose its own; NULL:
 * none is there, or no replay needs it, or it keeps another name. */
static const char *keep(const struct record *r, int dirfd, const char *name)
{
    const char *path;
    struct stat st;
    int node;

    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || st.st_nlink > 1 ||
        (node = record_find_node(r, &st)) < 0)
        return NULL;
    path = record_node_path(r, node);
    if (linkat(dirfd, name, AT_FDCWD, path, 0) < 0)
        memio_die("recorder: cannot keep %s: %s", name, strerror(errno));
    return path;
}

static int keep_renameat(const struct io *io, int from_dir, const char *from,
                         int to_dir, const char *to, unsigned flags)
{
    bool over = !(flags & (RENAME_EXCHANGE | RENAME_NOREPLACE));
    const char *kept = over ? keep(record_of(io), to_dir, to) : NULL;
    int e = io_real_ops.renameat(io, from_dir, from, to_dir, to, flags);

    if (e < 0 && kept)
        unlink(kept);
    return e;
}

static int keep_unlinkat(const struct io *io, int dirfd, const char *name)
{
    const char *kept = keep(record_of(io), dirfd, name);
    int e = io_real_ops.unlinkat(io, dirfd, name);

    if (e < 0 && kept)
        unlink(kept);
    return e;
}

/* ------------------------------------------------------------- the table */

static int rec_openat(const struct io *io, int dirfd, const char *path,
                      int flags, mode_t mode)
{
    struct record *r = record_of(io);
    struct stat st;
    bool there = fstatat(dirfd, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
    int fd = io_real_ops.openat(io, dirfd, path, flags, mode);
    char *name;

    if (fd < 0)
        return fd;
    name = relative(r, dirfd, path);
    if (name && !there && (flags & O_CREAT)) {
        add(r, REC_CREATE, node_of_fd(r, fd))->name = name;
        return fd;
    }
    if (name && (flags & O_TRUNC))
        add_content(r, REC_SIZE, node_of(r, fd), fd);
    free(name);
    return fd;
}

static ssize_t rec_pread(const struct io *io, int fd, void *data, size_t len,
                         uint64_t off)
{
    return io_real_ops.pread(io, fd, data, len, off);
}

static void add_write(struct record *r, int node, int fd, const void *data,
                      size_t len, uint64_t off)
{
    struct record_op *op = add_content(r, REC_WRITE, node, fd);

    op->off = off;
    op->len = len;
    op->data = malloc(len + 1);
    if (!op->data)
        memio_die("recorder: out of memory");
    memcpy(op->data, data, len);
}

static ssize_t rec_pwrite(const struct io *io, int fd, const void *data,
                          size_t len, uint64_t off)
{
    ssize_t n = io_real_ops.pwrite(io, fd, data, len, off);
    int node = n > 0 ? node_of(record_of(io), fd) : -1;

    if (node >= 0)
        add_write(record_of(io), node, fd, data, (size_t)n, off);
    return n;
}

static int rec_sync_any(const struct io *io, int fd)
{
    struct record *r = record_of(io);
    struct stat st;
    int node = node_of(r, fd);

    if (node >= 0) {
        add(r, REC_SYNC, node);
    } else if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        char *name = relative(r, fd, NULL);

        if (name)
            add(r, REC_SYNC_DIR, -1)->name = name;
    }
    return 0;
}

static int rec_fdatasync(const struct io *io, int fd)
{
    int e = io_real_ops.fdatasync(io, fd);

    return e < 0 ? e : rec_sync_any(io, fd);
}

static int rec_fsync(const struct io *io, int fd)
{
    int e = io_real_ops.fsync(io, fd);

    return e < 0 ? e : rec_sync_any(io, fd);
}

static int rec_ftruncate(const struct io *io, int fd, uint64_t size)
{
    int e = io_real_ops.ftruncate(io, fd, size);
    int node = e < 0 ? -1 : node_of(record_of(io), fd);

    if (node >= 0)
        add_content(record_of(io), REC_SIZE, node, fd)->off = size;
    return e;
}

static int rec_fallocate(const struct io *io, int fd, int mode, uint64_t off,
                         uint64_t len)
{
    int e = io_real_ops.fallocate(io, fd, mode, off, len);
    int node = e < 0 ? -1 : node_of(record_of(io), fd);
    struct record_op *op;

    if (node < 0 || mode == FALLOC_FL_KEEP_SIZE)
        return e;
    if (mode &
        ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        memio_die("recorder: fallocate mode %#x is not known", mode);
    if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) {
        op = add_content(record_of(io), REC_PUNCH, node, fd);
        op->off = off;
        op->len = len;
    }
    if (mode & FALLOC_FL_KEEP_SIZE)
        return e;
    op = add_content(record_of(io), REC_GROW, node, fd);
    op->off = off;
    op->len = len;
    return e;
}

static int rec_clone_range(const struct io *io, int src, uint64_t src_off,
                           uint64_t len, int dst, uint64_t dst_off)
{
    int e = io_real_ops.clone_range(io, src, src_off, len, dst, dst_off);
    int node = e < 0 ? -1 : node_of(record_of(io), dst);
    struct stat st;
    uint8_t *data;
    ssize_t n;

    if (node < 0)
        return e;
    if (len == 0 && fstat(src, &st) == 0)
        len = (uint64_t)st.st_size - src_off;
    data = malloc(len + 1);
    if (!data)
        memio_die("recorder: out of memory");
    n = pread(src, data, len, (off_t)src_off);
    if (n < 0)
        memio_die("recorder: cannot read what was cloned");
    add_write(record_of(io), node, dst, data, (size_t)n, dst_off);
    free(data);
    return e;
}

static int rec_renameat(const struct io *io, int from_dir, const char *from,
                        int to_dir, const char *to, unsigned flags)
{
    struct record *r = record_of(io);
    int e = keep_renameat(io, from_dir, from, to_dir, to, flags);
    struct record_op *op;

    if (e < 0)
        return e;
    op = add(r, REC_RENAME, -1);
    op->name = relative(r, from_dir, from);
    op->to = relative(r, to_dir, to);
    op->flags = flags;
    if (!op->name || !op->to)
        memio_die("recorder: rename into or out of the directory");
    return e;
}

static int rec_linkat(const struct io *io, int from_dir, const char *from,
                      int to_dir, const char *to)
{
    struct record *r = record_of(io);
    int e = io_real_ops.linkat(io, from_dir, from, to_dir, to);
    struct record_op *op;

    if (e < 0)
        return e;
    op = add(r, REC_LINK, -1);
    op->name = relative(r, from_dir, from);
    op->to = relative(r, to_dir, to);
    if (!op->name || !op->to)
        memio_die("recorder: link into or out of the directory");
    return e;
}

static int rec_unlinkat(const struct io *io, int dirfd, const char *name)
{
    struct record *r = record_of(io);
    int e = keep_unlinkat(io, dirfd, name);
    char *path = e < 0 ? NULL : relative(r, dirfd, name);

    if (path)
        add(r, REC_UNLINK, -1)->name = path;
    return e;
}

static int rec_attr(const struct io *io, int fd, int e)
{
    int node = e < 0 ? -1 : node_of(record_of(io), fd);

    if (node >= 0)
        add(record_of(io), REC_ATTR, node);
    return e;
}

static int rec_fchmod(const struct io *io, int fd, mode_t mode)
{
    return rec_attr(io, fd, io_real_ops.fchmod(io, fd, mode));
}

static int rec_fchown(const struct io *io, int fd, uid_t uid, gid_t gid)
{
    return rec_attr(io, fd, io_real_ops.fchown(io, fd, uid, gid));
}

static int rec_fsetxattr(const struct io *io, int fd, const char *name,
                         const void *value, size_t len)
{
    return rec_attr(io, fd, io_real_ops.fsetxattr(io, fd, name, value, len));
}

static int rec_fremovexattr(const struct io *io, int fd, const char *name)
{
    return rec_attr(io, fd, io_real_ops.fremovexattr(io, fd, name));
}

static int rec_setflags(const struct io *io, int fd, int flags)
{
    return rec_attr(io, fd, io_real_ops.setflags(io, fd, flags));
}

static const struct io_ops record_ops = {
    .openat = rec_openat,
    .pread = rec_pread,
    .pwrite = rec_pwrite,
    .fdatasync = rec_fdatasync,
    .fsync = rec_fsync,
    .ftruncate = rec_ftruncate,
    .fallocate = rec_fallocate,
    .clone_range = rec_clone_range,
    .renameat = rec_renameat,
    .linkat = rec_linkat,
    .unlinkat = rec_unlinkat,
    .fchmod = rec_fchmod,
    .fchown = rec_fchown,
    .fsetxattr = rec_fsetxattr,
    .fremovexattr = rec_fremovexattr,
    .setflags = rec_setflags,
};

/* -------------------------------------------------------------- lifetime */

static void take_file(void *user, const char *name)
{
    struct record *r = user;
    const char *path = memio_path(r->dir, name);
    struct stat st;
    int node;

    if (stat(path, &st) < 0)
        memio_die("recorder: cannot stat %s: %s", path, strerror(errno));
    node = record_find_node(r, &st);
    if (node < 0) {
        node = node_new(r, &st);
        r->nodes[node].start = memio_get(path, &r->nodes[node].start_len);
    }
    r->names = grow(r->names, r->name_count, sizeof(*r->names));
    r->names[r->name_count++] =
        (struct record_name){.name = strdup(name), .node = node};
}

static struct record *make(const char *dir)
{
    struct record *r = calloc(1, sizeof(*r));

    if (!r || !(r->dir = realpath(dir, NULL)))
        memio_die("recorder: no directory %s: %s", dir, strerror(errno));
    r->io.ops = &record_ops;
    r->keeping_ops = io_real_ops;
    r->keeping_ops.renameat = keep_renameat;
    r->keeping_ops.unlinkat = keep_unlinkat;
    r->keeping.ops = &r->keeping_ops;
    r->io.user = r->keeping.user = r;
    memio_each(r->dir, take_file, r);
    return r;
}

struct record *record_new(const char *dir)
{
    struct record *r = make(dir);

    if (asprintf(&r->nodes_dir, "%s.nodes-XXXXXX", r->dir) < 0 ||
        !mkdtemp(r->nodes_dir))
        memio_die("recorder: no directory beside %s", r->dir);
    return r;
}

struct record *record_nested(const struct record *outer)
{
    struct record *r = make(outer->dir);

    r->outer = outer;
    r->nodes_dir = outer->nodes_dir;
    return r;
}

/* What the outer one does not know may go. */
static void forget_own(const struct record *r)
{
    for (size_t i = 0; i < r->node_count; i++) {
        const struct record_node *n = &r->nodes[i];
        struct stat st = {.st_dev = n->dev, .st_ino = n->ino};

        if (record_find_node(r->outer, &st) < 0)
            unlink(record_node_path(r, (int)i));
    }
}

void record_free(struct record *r)
{
    if (!r)
        return;
    if (r->outer)
        forget_own(r);
    else
        memio_dir_remove(r->nodes_dir);
    for (size_t i = 0; i < r->op_count; i++) {
        free(r->ops[i].data);
        free(r->ops[i].name);
        free(r->ops[i].to);
    }
    for (size_t i = 0; i < r->node_count; i++)
        free(r->nodes[i].start);
    for (size_t i = 0; i < r->name_count; i++)
        free(r->names[i].name);
    free(r->ops);
    free(r->nodes);
    free(r->names);
    free(r->dir);
    free(r);
}

const struct io *record_io(struct record *r)
{
    return &r->io;
}

const struct io *record_keeping_io(struct record *r)
{
    return &r->keeping;
}

size_t record_count(const struct record *r)
{
    return r->op_count;
}
