/* SPDX-License-Identifier: MIT */
/*
 * What all kinds of capture share: the thread, its events, the file set and
 * the result. The thread's happy path: ops->run, the device state that the
 * owner gave, ramset_commit.
 */
#include "capture_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include "base/file.h"
#include "memstate/devstate.h"

struct capture {
    const struct capture_ops *ops;
    void *ctx;
    struct capture_options options; /* dirfd is not kept */
    struct worker worker;
    struct ramset_writer *writer;
    int instant_fd; /* readable for good: the owner called capture_instant */
    int device_fd;  /* by atomics: given while the thread runs */
    bool ready;     /* by atomics only */
    bool instant_taken;
    bool resumed;
    bool finished; /* the owner got a good result */
    struct capture_result result;
};

int capture_new(struct capture **out, const struct capture_ops *ops, void *ctx,
                const struct capture_options *options, struct qstill_error *err)
{
    CLEANUP(capture_closep) struct capture *c = calloc(1, sizeof(*c));

    if (!c) {
        ops->free(ctx);
        return err_nomem(err);
    }
    c->ops = ops;
    c->ctx = ctx;
    c->options = *options;
    c->options.dirfd = -1;
    c->options.io = options->io ? options->io : io_real();
    c->device_fd = -1;
    c->result.machine = "";
    c->worker.event_fd = c->worker.cancel_fd = -1;
    c->instant_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->instant_fd < 0)
        return err_errno(err, errno, "cannot make an eventfd");
    if (worker_init(&c->worker, err) < 0 ||
        ramset_create(&c->writer, options->io, options->dirfd, options->cache,
                      err) < 0)
        return err->code;
    *out = take_ptr(&c);
    return 0;
}

static int copy_device_state(struct capture *c, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    struct devstate parsed;
    struct stat st;

    if (fstat(c->device_fd, &st) < 0)
        return err_errno(err, errno, "cannot stat the device state");
    if (st.st_size < 0 || (uint64_t)st.st_size > RAMSET_DEVICE_MAX)
        return err_set(err, QSTILL_E_CORRUPT, "the device state has %lld bytes",
                       (long long)st.st_size);
    if (buf_reserve(&b, (size_t)st.st_size) < 0)
        return err_nomem(err);
    if (file_read_full(c->device_fd, b.data, (size_t)st.st_size, 0, err) < 0)
        return err_wrap(err, "reading the device state");
    if (c->options.foreign)
        return ramset_device_append(c->writer, b.data, (size_t)st.st_size, err);
    if (devstate_parse(&parsed, b.data, (size_t)st.st_size, err) < 0)
        return err->code;
    c->result.footers = parsed.footers;
    c->result.vmdescription = parsed.vmdescription;
    return ramset_device_append(c->writer, b.data, (size_t)st.st_size, err);
}

static void fill_result(struct capture *c)
{
    struct capture_result *r = &c->result;

    r->block_count = ramset_writer_blocks(c->writer);
    r->blocks = ramset_writer_block(c->writer, 0);
    for (size_t i = 0; i < r->block_count; i++)
        r->memory_bytes += r->blocks[i].size;
    r->zero_bytes = r->memory_bytes - r->written_bytes;
    r->disk_bytes = ramset_writer_used(c->writer);
    r->device_bytes = ramset_writer_device(c->writer);
}

static int run(void *ctx, struct qstill_error *err)
{
    struct capture *c = ctx;

    if (c->ops->run(c->ctx, c, err) < 0)
        return err->code;
    if (__atomic_load_n(&c->device_fd, __ATOMIC_ACQUIRE) >= 0 &&
        copy_device_state(c, err) < 0)
        return err->code;
    if (worker_check(&c->worker, err) < 0 || ramset_commit(c->writer, err) < 0)
        return err->code;
    fill_result(c);
    return 0;
}

int capture_start(struct capture *c, struct qstill_error *err)
{
    return worker_start(&c->worker, run, c, err);
}

/* -------------------------------------------------------------- the owner */

int capture_fd(const struct capture *c)
{
    return c->worker.event_fd;
}

void capture_poll(struct capture *c, struct capture_status *status)
{
    status->complete =
        worker_poll(&c->worker, &status->bytes_done, &status->bytes_total);
    status->ready = __atomic_load_n(&c->ready, __ATOMIC_ACQUIRE);
    status->instant_taken =
        __atomic_load_n(&c->instant_taken, __ATOMIC_ACQUIRE);
}

static int look_at_head(int fd, struct qstill_error *err)
{
    uint8_t head[DEVSTATE_HEADER + 1];

    if (file_read_full(fd, head, sizeof(head), 0, err) < 0)
        return err_wrap(err, "reading the device state");
    if (!devstate_begins(head))
        return err_set(err, QSTILL_E_CORRUPT,
                       "this is no device state of QEMU");
    return 0;
}

int capture_device_state(struct capture *c, int fd, struct qstill_error *err)
{
    int copy;

    if (!c->ops->stopped_by_owner || c->device_fd >= 0)
        return err_set(err, QSTILL_E_FAILED,
                       "this capture takes no (second) device state");
    if (!c->options.foreign && look_at_head(fd, err) < 0)
        return err->code;
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return err_errno(err, errno, "cannot keep the device state");
    __atomic_store_n(&c->device_fd, copy, __ATOMIC_RELEASE);
    return 0;
}

int capture_instant(struct capture *c, struct qstill_error *err)
{
    if (!c->ops->stopped_by_owner)
        return 0;
    if (c->device_fd < 0)
        return err_set(err, QSTILL_E_FAILED, "there is no device state");
    if (eventfd_write(c->instant_fd, 1) < 0)
        return err_errno(err, errno, "cannot wake the capture");
    return 0;
}

void capture_resumed(struct capture *c)
{
    __atomic_store_n(&c->resumed, true, __ATOMIC_RELEASE);
}

int capture_finish(struct capture *c, struct capture_result *out,
                   struct qstill_error *err)
{
    if (worker_result(&c->worker, err) < 0)
        return err->code;
    c->finished = true;
    *out = c->result;
    return 0;
}

void capture_cancel(struct capture *c)
{
    worker_cancel(&c->worker);
}

void capture_close(struct capture *c)
{
    if (!c)
        return;
    worker_join(&c->worker);
    c->ops->free(c->ctx);
    if (!c->finished && c->writer)
        ramset_discard(c->writer);
    ramset_writer_free(c->writer);
    closep(&c->device_fd);
    closep(&c->instant_fd);
    worker_fini(&c->worker);
    free(c);
}

void capture_closep(struct capture **c)
{
    capture_close(*c);
    *c = NULL;
}

/* ---------------------------------------------------------------- the kind */

struct ramset_writer *capture_writer(struct capture *c)
{
    return c->writer;
}

const struct capture_options *capture_get_options(const struct capture *c)
{
    return &c->options;
}

struct capture_result *capture_figures(struct capture *c)
{
    return &c->result;
}

void capture_set_ready(struct capture *c)
{
    __atomic_store_n(&c->ready, true, __ATOMIC_RELEASE);
    worker_signal(&c->worker);
}

void capture_set_instant_taken(struct capture *c)
{
    __atomic_store_n(&c->instant_taken, true, __ATOMIC_RELEASE);
    worker_signal(&c->worker);
}

void capture_set_total(struct capture *c, uint64_t bytes)
{
    worker_set_total(&c->worker, bytes);
}

void capture_add_done(struct capture *c, uint64_t bytes)
{
    worker_add_done(&c->worker, bytes);
}

bool capture_cancelled(const struct capture *c)
{
    return worker_cancelled(&c->worker);
}

bool capture_was_resumed(const struct capture *c)
{
    return __atomic_load_n(&c->resumed, __ATOMIC_ACQUIRE);
}

int capture_cancel_fd(const struct capture *c)
{
    return c->worker.cancel_fd;
}

int capture_instant_fd(const struct capture *c)
{
    return c->instant_fd;
}

int capture_wait_fd(struct capture *c, int fd, short events,
                    struct qstill_error *err)
{
    return worker_wait(&c->worker, fd, events, err);
}

int capture_wait_instant(struct capture *c, struct qstill_error *err)
{
    return worker_wait(&c->worker, c->instant_fd, POLLIN, err);
}

int capture_nap(struct capture *c, uint64_t ns, struct qstill_error *err)
{
    return worker_nap(&c->worker, ns, err);
}

int capture_pace(struct capture *c, struct pace *p, uint64_t bytes,
                 struct qstill_error *err)
{
    return worker_pace(&c->worker, p, bytes, err);
}
