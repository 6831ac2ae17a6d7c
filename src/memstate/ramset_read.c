/* SPDX-License-Identifier: MIT */
/* The file set as a reader sees it: opened, checked by lengths, not by sums. */
#include "ramset.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "memstate/ramset_layout.h"
#include "memstate/ramset_sums.h"

/* A file that the set must have: that it is missing is damage. */
static int open_file(const struct ramset *set, const char *name, uint64_t len,
                     int *out, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct stat st;

    if (file_openat(set->dirfd, name, O_RDONLY, 0, &fd, err) < 0) {
        if (err->code == QSTILL_E_NOT_FOUND)
            return err_set(err, QSTILL_E_CORRUPT, "%s is missing", name);
        return err->code;
    }
    if (fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", name);
    if ((uint64_t)st.st_size != len)
        return err_set(err, QSTILL_E_CORRUPT,
                       "%s is %lld bytes long, %llu are expected", name,
                       (long long)st.st_size, (unsigned long long)len);
    *out = take_fd(&fd);
    return 0;
}

static int check_files(const struct ramset *set, struct qstill_error *err)
{
    CLEANUP(closep) int device = -1;

    for (size_t i = 0; i < set->block_count; i++) {
        CLEANUP(closep) int fd = -1;

        if (ramset_block_open(set, (unsigned)i, RAMSET_CACHED, &fd, err) < 0)
            return err->code;
    }
    return open_file(set, RAMSET_DEVICE_NAME, set->device_len, &device, err);
}

static int read_sums(struct ramset *set, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    int dirfd = set->dirfd;

    if (file_slurpat(dirfd, RAMSET_SUMS_NAME, SUMS_FILE_MAX, &b, err) < 0) {
        if (err->code == QSTILL_E_NOT_FOUND)
            return err_set(err, QSTILL_E_CORRUPT,
                           RAMSET_SUMS_NAME " is missing");
        return err->code;
    }
    if (sums_parse(set, b.data, b.len, err) < 0)
        return err_wrap(err, RAMSET_SUMS_NAME);
    set->dirfd = dirfd;
    return 0;
}

int ramset_open(struct ramset **out, int dirfd, struct qstill_error *err)
{
    CLEANUP(ramset_closep) struct ramset *set = calloc(1, sizeof(*set));

    if (!set)
        return err_nomem(err);
    set->dirfd = fcntl(dirfd, F_DUPFD_CLOEXEC, 0);
    if (set->dirfd < 0)
        return err_errno(err, errno, "cannot use a directory");
    if (read_sums(set, err) < 0 || check_files(set, err) < 0)
        return err_wrap(err, "memory files");
    *out = take_ptr(&set);
    return 0;
}

void ramset_close(struct ramset *set)
{
    if (!set)
        return;
    sums_fini(set);
    if (set->dirfd >= 0)
        close(set->dirfd);
    free(set);
}

void ramset_closep(struct ramset **set)
{
    ramset_close(*set);
    *set = NULL;
}

const struct ramset_block *ramset_find(const struct ramset *set, const char *id,
                                       unsigned *index)
{
    for (size_t i = 0; i < set->block_count; i++) {
        if (strcmp(set->blocks[i].id, id) != 0)
            continue;
        if (index)
            *index = (unsigned)i;
        return &set->blocks[i];
    }
    return NULL;
}

int ramset_block_open(const struct ramset *set, unsigned index,
                      enum ramset_cache cache, int *fd,
                      struct qstill_error *err)
{
    const struct ramset_block *block = &set->blocks[index];
    CLEANUP(closep) int plain = -1;
    char name[RAMSET_NAME_SIZE];
    struct io_align align;
    int direct = -1;

    if (ramset_file_name(block->id, name, err) < 0 ||
        open_file(set, name, block->size, &plain, err) < 0)
        return err->code;
    if (cache == RAMSET_DIRECT &&
        io_open_direct(plain, RAMSET_PAGE, &direct, &align, err) < 0)
        return err_wrap(err, "%s", name);
    *fd = direct >= 0 ? direct : take_fd(&plain);
    return 0;
}

int ramset_device_read(const struct ramset *set, struct buf *b,
                       struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    size_t len = (size_t)set->device_len;

    if (open_file(set, RAMSET_DEVICE_NAME, len, &fd, err) < 0)
        return err->code;
    if (buf_reserve(b, len) < 0)
        return err_nomem(err);
    if (file_read_full(fd, b->data + b->len, len, 0, err) < 0)
        return err_wrap(err, RAMSET_DEVICE_NAME);
    if (sum_bytes(b->data + b->len, len, 0) != set->device_sum)
        return err_set(err, QSTILL_E_CORRUPT,
                       RAMSET_DEVICE_NAME " does not match its checksum");
    b->len += len;
    return 0;
}
