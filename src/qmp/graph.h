/* SPDX-License-Identifier: MIT */
/*
 * Changes of the block graph: overlays, nodes added, swapped and removed. Each
 * is one command, which QEMU does wholly or not at all.
 */
#ifndef QSTILL_QMP_GRAPH_H
#define QSTILL_QMP_GRAPH_H

#include "base/error.h"

struct qstill_qmp;

struct qmp_overlay {
    const char *node;     /* the present head's node name, or NULL: */
    const char *device;   /* the -drive's id */
    const char *path;     /* the overlay: a qcow2 that we wrote, complete with
                             its backing header */
    const char *new_node; /* required: unnamed nodes cannot be reopened */
};
/* ONE transaction of blockdev-snapshot-sync (mode=existing) for all disks. On
 * failure no disk has changed. */
int qmp_snapshot_disks(struct qstill_qmp *q, const struct qmp_overlay *overlays,
                       size_t count, struct qstill_error *err);

/* A format node over a file. Zero and NULL are QEMU's defaults. */
struct qmp_blockdev {
    const char *node;      /* required */
    const char *driver;    /* "qcow2" or "raw"; required */
    const char *path;      /* of the file; NULL: file_node exists already */
    const char *file_node; /* name of the protocol node, or NULL */
    const char *protocol;  /* NULL: "file" */
    const char *backing;   /* node name of the backing node, or NULL */
    bool backing_null;     /* no backing, whatever the header says; neither of
                              both: what the header says */
    bool read_only;
    bool cache_direct;
    bool cache_no_flush;
    const char *aio;           /* "threads", "native", "io_uring" */
    const char *discard;       /* "ignore", "unmap" */
    const char *detect_zeroes; /* "off", "on", "unmap" */
};
int qmp_blockdev_add(struct qstill_qmp *q, const struct qmp_blockdev *b,
                     struct qstill_error *err);

enum qmp_missing { QMP_MISSING_FAILS, QMP_MISSING_FINE, QMP_MISSING_UNASKED };
/* NOT_FOUND, or no failure (QMP_MISSING_FINE), when there is no such node: for
 * that all nodes are asked for. Else (QMP_MISSING_UNASKED) FAILED, as for one
 * that is in use. */
int qmp_blockdev_del(struct qstill_qmp *q, const char *node,
                     enum qmp_missing missing, struct qstill_error *err);

/*
 * Gives an open node another backing node (blockdev-reopen). `b` must hold all
 * options that the node has: what is omitted goes back to QEMU's default.
 * `file_node` is required (its present protocol node; "#block..." will do),
 * `path` must be NULL. PRECONDITION for a node with an automatic name.
 */
int qmp_blockdev_reopen(struct qstill_qmp *q, const struct qmp_blockdev *b,
                        struct qstill_error *err);

/*
 * The same for any node, also one whose name QEMU made or whose options nobody
 * knows: all other options stay as they are (HMP's qemu-io; blockdev-reopen
 * can do neither). `backing` is a node's name; NULL leaves it. QEMU's words are
 * in the message, as FAILED.
 */
int qmp_node_reopen(struct qstill_qmp *q, const char *node, const char *backing,
                    bool read_only, struct qstill_error *err);
/* Puts another node under a filter; all its options stay. Errors as above. */
struct qmp_node;
int qmp_filter_reopen(struct qstill_qmp *q, const struct qmp_node *filter,
                      const char *node, struct qstill_error *err);
/* "off", "on" or "unmap"; all other options stay. Errors as above. */
int qmp_node_detect_zeroes(struct qstill_qmp *q, const struct qmp_node *node,
                           const char *value, struct qstill_error *err);
/* Whether open nodes can be given another backing node, by either of the two:
 * one before 9.0 dies of it when the disk is in an iothread, whose lock it
 * gives back once too often ("qemu_mutex_unlock_impl: Operation not
 * permitted"). */
int qmp_swap_works(struct qstill_qmp *q, bool *works, struct qstill_error *err);

/* Rewrites the backing file string in an image's header, and that only: `node`
 * belongs to the chain whose head is `device` (node name or -drive id). */
int qmp_change_backing_file(struct qstill_qmp *q, const char *device,
                            const char *node, const char *backing_path,
                            struct qstill_error *err);

/* Takes up all images again that a migration to elsewhere has given up: until
 * then they can neither be written nor stood on. Fine when there are none, and
 * where QEMU has no such command (before 10.0: there they can). */
int qmp_blocks_activate(struct qstill_qmp *q, struct qstill_error *err);

/* Puts another node under a disk device (qom-set DEVICE drive NODE). */
int qmp_set_drive(struct qstill_qmp *q, const char *qdev, const char *node,
                  struct qstill_error *err);

#endif
