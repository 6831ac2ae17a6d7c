/* SPDX-License-Identifier: MIT */
/*
 * The files that make up a VM's disks: frozen layers named by snapshots, heads
 * and hidden layers, with who is backed by whom. Reads image headers only.
 */
#ifndef QSTILL_ENGINE_LAYERS_H
#define QSTILL_ENGINE_LAYERS_H

#include "base/buf.h"
#include "base/error.h"

struct journal;
struct session;
struct manifest;
struct vm_disk;

struct layer {
    const char *disk;
    const char *path;
    const char *format;
    const char *owner; /* id of the snapshot that needs it, or NULL */
    bool head;
    bool hidden;
    bool trash;          /* kept for undo: neither merged nor written */
    bool missing;        /* the file cannot be read; its error is forgotten */
    const char *backing; /* absolute; NULL for a base */
    struct layer *below; /* the known layer that is its backing, or NULL */
    size_t children;
    uint64_t allocated; /* disk blocks, bytes */
};

struct layers {
    size_t count;
    struct layer *items; /* strings in the session's arenas */
};

int layers_load(struct session *s, struct layers *out,
                struct qstill_error *err);
void layers_fini(struct layers *l);
struct layer *layers_find(const struct layers *l, const char *path);

/*
 * Creates an empty overlay for a disk, backed by `backing`, beside it or in
 * disk_dir: "STEM.TAG.qcow2"; 0600 and owned by the user
 * that QEMU runs as. The path goes into the record's arena.
 */
int layer_create(struct session *s, const struct vm_disk *d,
                 const char *backing, const char *backing_format,
                 const char *disk_dir, const char *tag, const char **path,
                 struct qstill_error *err);
/* The path it would get. */
const char *layer_new_path(struct session *s, const struct vm_disk *d,
                           const char *disk_dir, const char *tag);
/* Removes a file durably; one that is gone already is fine. */
int layer_remove(const char *path, struct qstill_error *err);
/* Whether an overlay holds nothing of its own. */
int layer_is_empty(const char *path, const char *format, bool *empty,
                   struct qstill_error *err);
/* What identifies a frozen layer: device, inode and, for qcow2, the hash of
 * its header (in arena `a` of m). */
struct manifest_disk;
int layer_identify(struct manifest *m, struct manifest_disk *d,
                   struct qstill_error *err);
/* CORRUPT when the file is not the one that was frozen, NOT_FOUND when it is
 * gone. */
int layer_check(const struct manifest_disk *d, struct qstill_error *err);

/* The journal of one of our own merges, in the VM's directory. */
#define LAYERS_MERGE_JOURNAL ".merge"

/*
 * Merges hidden layers away where that is possible now, and forgets those that
 * are gone. What cannot be merged now stays hidden, which `text` tells; only
 * damage and lost connections are errors.
 */
int layers_collapse(struct session *s, struct journal *j, struct buf *text,
                    struct qstill_error *err);

#endif
