/* SPDX-License-Identifier: MIT */
/*
 * A revert with memory inside the running QEMU process: its pages and its
 * device state become the snapshot's; the process, its sockets, taps and
 * consoles live on.
 *
 *   inplace_fits     nothing has changed yet: does it fit this QEMU?
 *   inplace_prepare  the guest runs: the stream, the RAM's addresses
 *   inplace_keep     stopped: what is overwritten next is kept, in files
 *   inplace_pages    pages that differ are written; then
 *   inplace_load     the device state, and what a machine reset overwrote
 * and then either inplace_forget(), or
 *   inplace_undo     everything is as it was at inplace_keep; also for the
 *                    next process, when this one is gone
 */
#ifndef QSTILL_ENGINE_INPLACE_H
#define QSTILL_ENGINE_INPLACE_H

#include "memstate/pageback.h"
#include "qmp/ram.h"

struct journal;
struct manifest;
struct session;

/* In the VM's folder, while a revert in place is under way. */
#define INPLACE_PAGES   "undo.pages"
#define INPLACE_STATE   "undo.state"
#define INPLACE_LOADING "undo.loading"

struct inplace {
    struct session *s;
    const struct ramset *set;
    struct qmp_ram ram;
    struct capture_source *sources;
    size_t source_count;
    struct qmp_ram_pieces roms; /* what a machine reset writes */
    int image;                  /* memfd: our VM state as a qcow2 */
    struct undolog undo;
    struct pageback *pages;
    struct pageback_result result;
};

/* PRECONDITION says in what this QEMU is not the snapshot's. */
int inplace_fits(struct session *s, const struct manifest *m,
                 struct qstill_error *err);

/* The same of an unplug that the machine's reset would complete: qmp/unplug.h.
 * In a snapshot without memory, too. */
int inplace_check_unplug(struct session *s, bool stands,
                         struct qstill_error *err);

/* `set` stays open until inplace_fini(). */
int inplace_prepare(struct inplace *p, struct session *s,
                    const struct manifest *m, const struct ramset *set,
                    struct qstill_error *err);
int inplace_keep(struct inplace *p, const struct manifest *m,
                 struct qstill_error *err);
/* That what comes next overwrites the devices. */
int inplace_keep_loading(const struct inplace *p, struct qstill_error *err);
int inplace_pages_start(struct inplace *p, struct qstill_error *err);
int inplace_pages_step(struct inplace *p, bool *done, uint64_t *bytes_done,
                       uint64_t *bytes_total, struct qstill_error *err);
int inplace_load(struct inplace *p, struct qstill_error *err);
/* Ends the threads; NULL members are fine. */
void inplace_fini(struct inplace *p);

/* Whether the VM's memory and devices may be other than before the revert. */
bool inplace_has_kept(const struct session *s);
int inplace_undo(struct session *s, uint64_t *pages, struct qstill_error *err);
void inplace_forget(const struct session *s);

/* Sends a VM state (a migration stream) into the stopped VM. */
int inplace_load_image(struct session *s, int image, struct qstill_error *err);
/* An image with this VM state, as a memfd. */
int inplace_make_image(const struct buf *stream, int *image,
                       struct qstill_error *err);
/* Ends what a process that died had under way. */
int inplace_settle(struct session *s, struct qstill_error *err);

#endif
