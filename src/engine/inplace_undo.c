/* SPDX-License-Identifier: MIT */
/*
 * What a revert in place overwrites, and putting it back.
 *
 * undo.pages (memstate/undolog.h) holds pages, undo.state a stream with the
 * device state as it was and the pages that a machine reset overwrites. Once
 * undo.state has its name all that counts is kept; before it has, nothing was
 * overwritten. undo.loading is empty, and there from before the devices are
 * overwritten. None is synced: QEMU does not survive its host either.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/file.h"
#include "devices.h"
#include "inplace.h"
#include "memstate/devstate.h"
#include "memstate/procmem.h"
#include "memstate/restore.h"
#include "memstate/stream_write.h"
#include "session.h"
#include "vmram.h"

#define STATE_ASIDE  ".undo.state"
#define PIECES_LIMIT ((uint64_t)64 << 20)

/* -------------------------------------------------------------------- keep */

static const struct capture_source *source_of(const struct inplace *p,
                                              const char *id)
{
    for (size_t i = 0; i < p->source_count; i++)
        if (strcmp(p->sources[i].id, id) == 0)
            return &p->sources[i];
    return NULL;
}

static int put_page(struct buf *b, const uint8_t *page, uint64_t off,
                    const char *id)
{
    if (stream_put_record(b, off, STREAM_RAM_PAGE, id) < 0)
        return -1;
    return buf_append(b, page, RAMSET_PAGE);
}

/* The pages of one piece, read from the VM, into stream and log. */
static int put_piece(struct inplace *p, struct procmem *mem,
                     const struct qmp_ram_piece *piece, struct buf *b,
                     struct qstill_error *err)
{
    const struct capture_source *src = source_of(p, piece->block);
    CLEANUP(freep) uint8_t *data = malloc(RAMSET_CHUNK);
    struct ramset_map all;

    memset(&all, 0xff, sizeof(all));
    if (!data)
        return err_nomem(err);
    for (uint64_t at = 0; src && at < piece->length; at += RAMSET_CHUNK) {
        size_t len =
            (size_t)(piece->length - at < RAMSET_CHUNK ? piece->length - at
                                                       : RAMSET_CHUNK);
        uint64_t off = piece->offset + at;

        if (procmem_read(mem, src->hva + off, data, len, err) < 0 ||
            undolog_keep(&p->undo, src->id, off / RAMSET_PAGE, data,
                         len / RAMSET_PAGE, &all, err) < 0)
            return err->code;
        for (size_t i = 0; i < len; i += RAMSET_PAGE)
            if (put_page(b, data + i, off + i, src->id) < 0)
                return err_nomem(err);
    }
    return 0;
}

static int put_ram(struct inplace *p, bool footers, struct buf *b,
                   struct qstill_error *err)
{
    CLEANUP(procmem_closep) struct procmem *mem = NULL;
    uint64_t total = 0, pieces = 0;

    for (size_t i = 0; i < p->source_count; i++)
        total += p->sources[i].size;
    if (stream_begin_ram(b, total) < 0)
        return err_nomem(err);
    for (size_t i = 0; i < p->source_count; i++)
        if (stream_put_block(b, p->sources[i].id, p->sources[i].size) < 0)
            return err_nomem(err);
    if (stream_end_section(b, footers) < 0 ||
        stream_begin_section(b, STREAM_END) < 0)
        return err_nomem(err);
    if (procmem_open(&mem, p->s->pid, err) < 0)
        return err->code;
    for (size_t i = 0; i < p->roms.count; i++) {
        pieces += p->roms.items[i].length;
        if (pieces > PIECES_LIMIT)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "a machine reset writes too much into RAM");
        if (put_piece(p, mem, &p->roms.items[i], b, err) < 0)
            return err->code;
    }
    return stream_end_section(b, footers) < 0 ? err_nomem(err) : 0;
}

static int read_memfd(int fd, struct buf *b, struct qstill_error *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot look at a memfd");
    if ((uint64_t)st.st_size > RAMSET_DEVICE_MAX)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the device state has %lld bytes",
                       (long long)st.st_size);
    if (buf_reserve(b, (size_t)st.st_size) < 0)
        return err_nomem(err);
    if (file_read_full(fd, b->data, (size_t)st.st_size, 0, err) < 0)
        return err->code;
    b->len = (size_t)st.st_size;
    return 0;
}

/* The state that the VM is in now, as a stream. */
static int make_state(struct inplace *p, const char *machine, struct buf *b,
                      struct qstill_error *err)
{
    CLEANUP(closep) int fd = memfd_create("qstill-devices", MFD_CLOEXEC);
    CLEANUP(buf_fini) struct buf devices = BUF_INIT;
    struct devstate parsed;

    if (fd < 0)
        return err_errno(err, errno, "no memfd");
    if (devices_save(p->s->qmp, fd, err) < 0 ||
        read_memfd(fd, &devices, err) < 0 ||
        devstate_parse(&parsed, devices.data, devices.len, err) < 0)
        return err_wrap(err, "saving the present device state");
    if (stream_put_head(b, machine) < 0)
        return err_nomem(err);
    if (put_ram(p, parsed.footers, b, err) < 0)
        return err->code;
    if (buf_append(b, devices.data + DEVSTATE_HEADER,
                   devices.len - DEVSTATE_HEADER) < 0 ||
        (!parsed.vmdescription && stream_put_empty_vmdescription(b) < 0))
        return err_nomem(err);
    return 0;
}

static int write_state(struct session *s, const struct buf *b,
                       struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    unlinkat(s->vmfd, STATE_ASIDE, 0);
    if (file_openat(s->vmfd, STATE_ASIDE, O_WRONLY | O_CREAT | O_EXCL, 0600,
                    &fd, err) < 0 ||
        file_write_full(fd, b->data, b->len, 0, err) < 0)
        return err_wrap(err, "keeping the present device state");
    if (renameat(s->vmfd, STATE_ASIDE, s->vmfd, INPLACE_STATE) < 0)
        return err_errno(err, errno, "keeping the present device state");
    return 0;
}

int inplace_keep(struct inplace *p, const struct manifest *m,
                 struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf state = BUF_INIT;

    inplace_forget(p->s);
    if (file_openat(p->s->vmfd, INPLACE_PAGES, O_RDWR | O_CREAT | O_EXCL, 0600,
                    &p->undo.fd, err) < 0)
        return err->code;
    if (make_state(p, m->machine, &state, err) < 0)
        return err->code;
    return write_state(p->s, &state, err);
}

int inplace_keep_loading(const struct inplace *p, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    return file_openat(p->s->vmfd, INPLACE_LOADING, O_WRONLY | O_CREAT, 0600,
                       &fd, err);
}

/* -------------------------------------------------------------------- undo */

bool inplace_has_kept(const struct session *s)
{
    return faccessat(s->vmfd, INPLACE_STATE, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

void inplace_forget(const struct session *s)
{
    /* the state first: without it the pages mean nothing */
    unlinkat(s->vmfd, INPLACE_STATE, 0);
    unlinkat(s->vmfd, INPLACE_PAGES, 0);
    unlinkat(s->vmfd, INPLACE_LOADING, 0);
    unlinkat(s->vmfd, STATE_ASIDE, 0);
}

static int put_back(struct session *s, int fd, uint64_t *pages,
                    struct qstill_error *err)
{
    CLEANUP(procmem_closep) struct procmem *mem = NULL;
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;
    CLEANUP(freep) struct capture_source *sources = NULL;
    size_t count;

    if (vmram_find(s, VMRAM_WRITTEN, &ram, &sources, &count, err) < 0 ||
        procmem_open(&mem, s->pid, err) < 0)
        return err->code;
    return undolog_apply(fd, mem, sources, count, pages, err);
}

/* The reset that comes with a load would take a device away, and the load fail:
 * without it the guest has its devices, unless another one has been begun. */
static int load_back(struct session *s, int image, struct qstill_error *err)
{
    bool loaded =
        faccessat(s->vmfd, INPLACE_LOADING, F_OK, AT_SYMLINK_NOFOLLOW) == 0;

    if (inplace_check_unplug(s, true, err) == 0)
        return inplace_load_image(s, image, err);
    if (err->code != QSTILL_E_PRECONDITION || loaded)
        return err->code;
    return err_clear(err);
}

int inplace_undo(struct session *s, uint64_t *pages, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf state = BUF_INIT;
    CLEANUP(closep) int fd = -1, image = -1;

    if (inplace_settle(s, err) < 0 ||
        file_openat(s->vmfd, INPLACE_PAGES, O_RDONLY, 0, &fd, err) < 0 ||
        file_slurpat(s->vmfd, INPLACE_STATE, RESTORE_BUILD_MAX, &state, err) <
            0 ||
        inplace_make_image(&state, &image, err) < 0)
        return err->code;
    /* Before the load, for devices look into RAM; and after it, since the
     * machine reset that comes with it writes into RAM. */
    if (put_back(s, fd, pages, err) < 0 || load_back(s, image, err) < 0 ||
        put_back(s, fd, pages, err) < 0)
        return err_wrap(err, "bringing the memory of before back");
    return 0;
}
