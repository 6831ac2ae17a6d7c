/* SPDX-License-Identifier: MIT */
/*
 * Makes a file set. Files are made at once and filled by whoever has the
 * pages; `sums` comes last, in ramset_commit(), when all else is durable. What
 * was made is removed again when there was no commit.
 */
#include "ramset.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/aio.h"
#include "base/checked.h"
#include "base/file.h"
#include "memstate/devstate.h"
#include "memstate/ramset_sums.h"

struct ramset_file {
    int fd;     /* through the page cache */
    int direct; /* O_DIRECT, or -1 */
};

struct ramset_writer {
    const struct io *io;
    enum ramset_cache cache;
    struct ramset set; /* dirfd, blocks, lengths, sums */
    struct ramset_file *files;
    int device_fd;
    struct sum_stream *device_sum;
    bool sums_made;
    bool committed;
};

int ramset_create(struct ramset_writer **out, const struct io *io, int dirfd,
                  enum ramset_cache cache, struct qstill_error *err)
{
    CLEANUP(ramset_writer_freep) struct ramset_writer *w = NULL;

    w = calloc(1, sizeof(*w));
    if (!w)
        return err_nomem(err);
    w->io = io ? io : io_real();
    w->cache = cache;
    w->device_fd = -1;
    w->set.dirfd = fcntl(dirfd, F_DUPFD_CLOEXEC, 0);
    if (w->set.dirfd < 0)
        return err_errno(err, errno, "cannot use a directory");
    /* Whole arrays, so that pointers to blocks stay good. */
    w->set.blocks = calloc(RAMSET_BLOCKS_MAX, sizeof(*w->set.blocks));
    w->files = calloc(RAMSET_BLOCKS_MAX, sizeof(*w->files));
    w->device_sum = sum_stream_new();
    if (!w->set.blocks || !w->files || !w->device_sum)
        return err_nomem(err);
    *out = take_ptr(&w);
    return 0;
}

static int make_file(const struct ramset_writer *w, const char *name, int *out,
                     struct qstill_error *err)
{
    return io_openat(w->io, w->set.dirfd, name, O_RDWR | O_CREAT | O_EXCL, 0600,
                     out, err);
}

static void remove_file(const struct ramset_writer *w, const char *name)
{
    w->io->ops->unlinkat(w->io, w->set.dirfd, name);
}

/* The file of a block that is set up otherwise. */
static int open_block(struct ramset_writer *w, const struct ramset_block *block,
                      struct ramset_file *out, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    char name[RAMSET_NAME_SIZE];
    struct io_align align;
    int direct = -1;

    if (ramset_file_name(block->id, name, err) < 0 ||
        make_file(w, name, &fd, err) < 0)
        return err->code;
    /* Small blocks are not worth a second fd: the commit syncs them anyway. */
    if (io_truncate(w->io, fd, block->size, name, err) < 0 ||
        (w->cache == RAMSET_DIRECT && block->size >= RAMSET_CHUNK &&
         io_open_direct(fd, RAMSET_PAGE, &direct, &align, err) < 0)) {
        remove_file(w, name);
        return err->code;
    }
    *out = (struct ramset_file){take_fd(&fd), direct};
    return 0;
}

int ramset_add_block(struct ramset_writer *w, const char *id, uint64_t size,
                     uint32_t page_size, unsigned *index,
                     struct qstill_error *err)
{
    size_t chunks = (size_t)div_up_u64(size, RAMSET_CHUNK);
    CLEANUP(freep) uint64_t *sums = NULL;
    CLEANUP(freep) char *name = NULL;
    size_t i = w->set.block_count;
    struct ramset_block block;

    if (sums_check_block(&w->set, id, size, err) < 0)
        return err->code;
    sums = calloc(chunks ? chunks : 1, sizeof(*sums));
    name = strdup(id);
    if (!sums || !name)
        return err_nomem(err);
    block = (struct ramset_block){
        .id = name,
        .size = size,
        .page_size = page_size,
        .chunks = chunks,
        .sums = sums,
    };
    if (open_block(w, &block, &w->files[i], err) < 0)
        return err->code;
    take_ptr(&sums);
    take_ptr(&name);
    w->set.blocks[i] = block;
    w->set.block_count++;
    w->set.memory_bytes += size;
    if (index)
        *index = (unsigned)i;
    return 0;
}

size_t ramset_writer_blocks(const struct ramset_writer *w)
{
    return w->set.block_count;
}

const struct ramset_block *ramset_writer_block(const struct ramset_writer *w,
                                               unsigned index)
{
    return &w->set.blocks[index];
}

int ramset_writer_fd(const struct ramset_writer *w, unsigned index)
{
    const struct ramset_file *f = &w->files[index];

    return f->direct >= 0 ? f->direct : f->fd;
}

void ramset_sum_add(struct ramset_writer *w, unsigned index, uint64_t chunk,
                    uint64_t sum)
{
    __atomic_fetch_add(&w->set.blocks[index].sums[chunk], sum,
                       __ATOMIC_RELAXED);
}

/* ----------------------------------------------------------- device state */

int ramset_device_append(struct ramset_writer *w, const void *data, size_t len,
                         struct qstill_error *err)
{
    if (w->device_fd < 0 &&
        make_file(w, RAMSET_DEVICE_NAME, &w->device_fd, err) < 0)
        return err->code;
    if (len > RAMSET_DEVICE_MAX - w->set.device_len)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the device state is longer than %llu bytes",
                       (unsigned long long)RAMSET_DEVICE_MAX);
    if (io_write_full(w->io, w->device_fd, data, len, w->set.device_len, err) <
        0)
        return err_wrap(err, RAMSET_DEVICE_NAME);
    sum_stream_add(w->device_sum, data, len);
    w->set.device_len += len;
    return 0;
}

/* ----------------------------------------------------------------- commit */

/* All at once: the filesystem then needs few journal commits, not one for
 * each file. */
static int sync_files(struct ramset_writer *w, struct qstill_error *err)
{
    size_t count = w->set.block_count + 1;
    CLEANUP(freep) struct aio_op *ops = calloc(count, sizeof(*ops));
    CLEANUP(aio_closep) struct aio *aio = NULL;

    if (!ops)
        return err_nomem(err);
    if (aio_open(&aio, w->io, NULL, err) < 0)
        return err->code;
    for (size_t i = 0; i < count; i++) {
        ops[i].type = AIO_DATASYNC;
        ops[i].fd = i < w->set.block_count ? w->files[i].fd : w->device_fd;
        aio_submit(aio, &ops[i]);
    }
    if (aio_drain(aio, err) < 0)
        return err->code;
    for (size_t i = 0; i < count; i++)
        if (ops[i].error)
            return err_errno(err, ops[i].error,
                             "cannot make the memory files durable");
    return 0;
}

static int write_sums(struct ramset_writer *w, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    CLEANUP(closep) int fd = -1;

    if (sums_emit(&w->set, &b, err) < 0 ||
        make_file(w, RAMSET_SUMS_NAME, &fd, err) < 0)
        return err->code;
    w->sums_made = true;
    if (io_write_full(w->io, fd, b.data, b.len, 0, err) < 0)
        return err_wrap(err, RAMSET_SUMS_NAME);
    if (io_sync(w->io, fd, RAMSET_SUMS_NAME, err) < 0)
        return err->code;
    return file_close_checked(&fd, RAMSET_SUMS_NAME, err);
}

int ramset_commit(struct ramset_writer *w, struct qstill_error *err)
{
    if (w->device_fd < 0)
        return err_set(err, QSTILL_E_FAILED, "there is no device state");
    w->set.device_sum = sum_stream_value(w->device_sum);
    if (sync_files(w, err) < 0 || write_sums(w, err) < 0 ||
        io_sync(w->io, w->set.dirfd, "the memory directory", err) < 0)
        return err->code;
    w->committed = true;
    return 0;
}

static uint64_t used_bytes(int fd)
{
    struct stat st;

    return fd >= 0 && fstat(fd, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

uint64_t ramset_writer_used(const struct ramset_writer *w)
{
    uint64_t used = used_bytes(w->device_fd);

    for (size_t i = 0; i < w->set.block_count; i++)
        used += used_bytes(w->files[i].fd);
    return used;
}

uint64_t ramset_writer_device(const struct ramset_writer *w)
{
    return w->set.device_len;
}

void ramset_discard(struct ramset_writer *w)
{
    w->committed = false;
}

static void remove_all(struct ramset_writer *w)
{
    struct qstill_error scratch;
    char name[RAMSET_NAME_SIZE];

    for (size_t i = 0; i < w->set.block_count; i++)
        if (ramset_file_name(w->set.blocks[i].id, name, &scratch) == 0)
            remove_file(w, name);
    if (w->device_fd >= 0)
        remove_file(w, RAMSET_DEVICE_NAME);
    if (w->sums_made)
        remove_file(w, RAMSET_SUMS_NAME);
}

void ramset_writer_free(struct ramset_writer *w)
{
    if (!w)
        return;
    if (!w->committed)
        remove_all(w);
    for (size_t i = 0; i < w->set.block_count; i++) {
        close(w->files[i].fd);
        if (w->files[i].direct >= 0)
            close(w->files[i].direct);
    }
    if (w->device_fd >= 0)
        close(w->device_fd);
    sums_fini(&w->set);
    free(w->files);
    if (w->device_sum)
        sum_stream_freep(&w->device_sum);
    if (w->set.dirfd >= 0)
        close(w->set.dirfd);
    free(w);
}

void ramset_writer_freep(struct ramset_writer **w)
{
    ramset_writer_free(*w);
    *w = NULL;
}
