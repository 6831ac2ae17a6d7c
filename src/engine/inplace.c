/* SPDX-License-Identifier: MIT */
/* The way forward of a revert in place. */
#include "inplace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "lent.h"
#include "memstate/restore.h"
#include "qcow2/create.h"
#include "qmp/graph.h"
#include "qmp/job.h"
#include "qmp/monitor.h"
#include "session.h"
#include "start.h"
#include "store.h"
#include "vmram.h"

#define IMAGE_TAG  "qstill"
#define IMAGE_NODE "qstill-vmstate"
#define LOAD_JOB   "qstill-load"
/*
 * For a load: a device state is a few hundred KiB, a display may bring along
 * 256 MiB, RESTORE_BUILD_MAX is the most, and all of it is in memory: a second.
 * In QEMU 7.2 one of three never ended when the reset took a disk away (the job
 * waits for requests of a disk that is gone).
 */
#define LOAD_MS 60000
/* A QEMU that dies closes its sockets before it is gone. */
#define ENDING_MS 10000

/* ------------------------------------------------------------------- image */

int inplace_make_image(const struct buf *stream, int *image,
                       struct qstill_error *err)
{
    CLEANUP(closep) int fd = memfd_create("qstill-vmstate", MFD_CLOEXEC);

    if (fd < 0)
        return err_errno(err, errno, "no memfd");
    if (qcow2_create_vmstate_fd(io_real(), fd, "the VM state's image",
                                IMAGE_TAG, stream->data, stream->len, err) < 0)
        return err->code;
    *image = take_fd(&fd);
    return 0;
}

static int load_node(struct session *s, struct qstill_error *err)
{
    if (qmp_snapshot_load(s->qmp, LOAD_JOB, IMAGE_TAG, IMAGE_NODE, err) < 0)
        return err->code;
    return qmp_job_finish(s->qmp, LOAD_JOB, LOAD_MS, err);
}

/* One that hangs is as good as dead; its guest stands, so all that it has
 * written is in the images. */
static void end_stuck(struct session *s)
{
    int pid = s->pid;

    if (start_has_ended(pid, ENDING_MS))
        return;
    store_note(s->store,
               "QEMU (process %d) has not loaded the device state in %u s, and "
               "is ended",
               pid, LOAD_MS / 1000);
    session_disconnect(s); /* `quit` would not be answered either */
    start_kill(s, pid);
}

int inplace_load_image(struct session *s, int image, struct qstill_error *err)
{
    struct qstill_error ignored = {0};
    struct qmp_blockdev node = {.node = IMAGE_NODE, .driver = "qcow2"};
    char path[64];
    int64_t fdset;

    if (qmp_add_fd(s->qmp, image, LENT_VMSTATE, &fdset, err) < 0)
        return err->code;
    snprintf(path, sizeof(path), "/dev/fdset/%lld", (long long)fdset);
    node.path = path;
    if (qmp_blockdev_add(s->qmp, &node, err) == 0 && load_node(s, err) < 0 &&
        err->code == QSTILL_E_UNREACHABLE) {
        end_stuck(s);
        return err_wrap(err, "loading the device state");
    }
    qmp_blockdev_del(s->qmp, IMAGE_NODE, QMP_MISSING_FINE, &ignored);
    qmp_remove_fd(s->qmp, fdset, &ignored);
    return err->code < 0 ? err_wrap(err, "loading the device state") : 0;
}

int inplace_settle(struct session *s, struct qstill_error *err)
{
    struct qstill_error ignored = {0};
    struct qmp_job job;

    if (qmp_job_read(s->qmp, LOAD_JOB, &job, &ignored) == 0 &&
        (qmp_job_wait(s->qmp, LOAD_JOB, QMP_JOB_CONCLUDED, LOAD_MS, &job, err) <
             0 ||
         qmp_job_dismiss(s->qmp, LOAD_JOB, err) < 0))
        return err->code;
    /* Its fd set: lent_take_back(). */
    return qmp_blockdev_del(s->qmp, IMAGE_NODE, QMP_MISSING_FINE, err);
}

/* ----------------------------------------------------------------- prepare */

/* What a machine reset writes into RAM is in the snapshot's files too: it
 * travels with the device state, which is loaded after the reset. */
static int make_stream(struct inplace *p, const struct manifest *m,
                       struct buf *out, struct qstill_error *err)
{
    CLEANUP(freep)
    struct restore_range *ranges = calloc(p->roms.count + 1, sizeof(*ranges));
    struct restore_options o = {
        .set = p->set,
        .machine = m->machine,
        .pages = RESTORE_LISTED,
        .ranges = ranges,
        .cache = RAMSET_CACHED,
    };

    if (!ranges)
        return err_nomem(err);
    for (size_t i = 0; i < p->roms.count; i++) {
        const struct qmp_ram_piece *r = &p->roms.items[i];

        if (!ramset_find(p->set, r->block, NULL))
            continue;
        ranges[o.range_count++] = (struct restore_range){
            .id = r->block, .offset = r->offset, .length = r->length};
    }
    return restore_build(out, &o, err);
}

static int find_roms(struct inplace *p, struct qstill_error *err)
{
    CLEANUP(qmp_ram_map_fini) struct qmp_ram_map map = QMP_RAM_MAP_INIT;
    CLEANUP(qmp_roms_fini) struct qmp_roms roms = {0};

    if (qmp_ram_map_read(p->s->qmp, &map, err) < 0 ||
        qmp_roms_read(p->s->qmp, &roms, err) < 0 ||
        qmp_loaders_read(p->s->qmp, &roms, err) < 0)
        return err->code;
    return qmp_roms_locate(&roms, &map, &p->ram, &p->roms, err);
}

int inplace_prepare(struct inplace *p, struct session *s,
                    const struct manifest *m, const struct ramset *set,
                    struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf stream = BUF_INIT;

    p->s = s;
    p->set = set;
    p->image = p->undo.fd = -1;
    if (vmram_find(s, VMRAM_WRITTEN, &p->ram, &p->sources, &p->source_count,
                   err) < 0 ||
        find_roms(p, err) < 0 || make_stream(p, m, &stream, err) < 0)
        return err->code;
    for (size_t i = 0; i < set->block_count; i++) {
        const struct qmp_ram_block *b =
            qmp_ram_find(&p->ram, set->blocks[i].id);

        if (!b || !b->hva)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "RAM block %s cannot be found in QEMU's memory",
                           set->blocks[i].id);
    }
    return inplace_make_image(&stream, &p->image, err);
}

/* ------------------------------------------------------------- pages, load */

int inplace_pages_start(struct inplace *p, struct qstill_error *err)
{
    struct pageback_options o = {
        .set = p->set,
        .pid = p->s->pid,
        .blocks = p->sources,
        .count = p->source_count,
        .undo = &p->undo,
    };

    return pageback_open(&p->pages, &o, err);
}

int inplace_pages_step(struct inplace *p, bool *done, uint64_t *bytes_done,
                       uint64_t *bytes_total, struct qstill_error *err)
{
    pageback_poll(p->pages, done, bytes_done, bytes_total);
    return *done ? pageback_finish(p->pages, &p->result, err) : 0;
}

/* Some devices fill their own memory at a reset, which no list tells. */
static int mend_small_blocks(struct inplace *p, struct qstill_error *err)
{
    struct pageback_result result;
    struct pageback_options o = {
        .set = p->set,
        .pid = p->s->pid,
        .blocks = p->sources,
        .count = p->source_count,
        .max_size = RESTORE_SMALL_MAX,
        .threads = 1,
    };

    if (pageback_run(&o, &result, err) < 0)
        return err->code;
    p->result.written_pages += result.written_pages;
    return 0;
}

int inplace_load(struct inplace *p, struct qstill_error *err)
{
    if (inplace_keep_loading(p, err) < 0 ||
        inplace_load_image(p->s, p->image, err) < 0)
        return err->code;
    return mend_small_blocks(p, err);
}

void inplace_fini(struct inplace *p)
{
    if (!p->s)
        return;
    pageback_close(p->pages);
    free(p->sources);
    qmp_ram_fini(&p->ram);
    qmp_ram_pieces_fini(&p->roms);
    closep(&p->image);
    closep(&p->undo.fd);
    memset(p, 0, sizeof(*p));
}
