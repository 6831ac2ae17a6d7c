/* SPDX-License-Identifier: MIT */
/*
 * vm.json: what qstill knows of an attached VM. Every string belongs to the
 * record's arena; setters copy.
 */
#ifndef QSTILL_ENGINE_VMRECORD_H
#define QSTILL_ENGINE_VMRECORD_H

#include "base/arena.h"
#include "base/error.h"
#include "launch.h"

/* QEMU itself stops at a few hundred disks; a manifest stays small. */
#define VM_DISKS_MAX 256
/* All layers of 1000 snapshots of 16 disks that are deleted at once; at 300
 * bytes and two names of 100 each that is 8 MiB, half of JSON_FILE_MAX. */
#define VM_HIDDEN_MAX 16384
/* Operations whose trash is kept, and snapshots that one took away. */
#define VM_TRASH_MAX       64
#define VM_TRASH_FILES_MAX 65536

struct vm_disk {
    const char *name;        /* what users call it: qdev id, drive id, ... */
    const char *qdev;        /* query-block's qdev, or NULL */
    const char *device;      /* query-block's device name, or NULL */
    const char *attach_path; /* as QEMU named it when it was started */
    const char *attach_format;
    /* where the disk came from, absolute, once attach_path is another; see
     * session_first_image() */
    const char *first_path;
    const char *head_path; /* the writable top image now; absolute */
    const char *head_format;
    uint64_t virtual_size;
};

/* A layer that no snapshot names any more and that others still read, or that
 * is kept for undo. */
struct vm_hidden {
    const char *disk;
    const char *path;
    const char *format;
    bool keep; /* while several others share it */
    /* what it was when it got here, as in manifest_disk; 0: not known */
    uint64_t dev, ino, file_size, mtime_ns;
    const char *header_hash;
};

/* A snapshot that lost its parent to a delete. */
struct vm_link {
    const char *child;
    const char *parent;
};

/* What a revert or a delete took away, for undo (trash.h). */
struct vm_trash {
    const char *tag;      /* of the operation that took it away */
    const char *snapshot; /* revert: the id it went to; NULL: a delete */
    const char *current;  /* what was the current snapshot, of a delete if it is
                             among those; NULL: none, or not known */
    uint64_t keep;        /* so many more operations; 0: it is to go */
    bool redo;            /* heads that an undo left (trash.h) */
    size_t layer_count;   /* revert: the old heads; delete: its layers */
    struct vm_hidden *layers;
    size_t id_count; /* delete: the snapshots, as snapshots/.ID.trash */
    char **ids;
    size_t link_count; /* delete: the children that got another parent */
    struct vm_link *links;
};

/* The guest may be frozen, and nobody has thawed it yet (thaw.h). */
struct vm_thaw {
    bool owed;
    uint64_t pid, pid_start; /* of its QEMU (start.h); pid 0: not known */
};

struct vm_record {
    struct arena arena;
    const char *name;
    const char *qmp;
    const char *agent;
    const char *launcher;
    const char *uuid;
    const char *current; /* id of the current snapshot, or NULL */
    const char *mapped;  /* id of the snapshot whose RAM files QEMU maps */
    size_t disk_count;
    struct vm_disk *disks;
    size_t hidden_count, hidden_cap;
    struct vm_hidden *hidden;
    size_t trash_count; /* oldest first */
    struct vm_trash *trash;
    struct vm_thaw thaw;
    const char *aged; /* tag of the operation that aged the trash last */
    /* when changed layers were last taken as they are (accept.c); 0: never */
    uint64_t accepted_ns;
    bool has_launch;
    struct launch_record launch; /* members in the arena: never _fini'ed */
};

/* CORRUPT, PRECONDITION (version) or NOT_FOUND. */
int vmrecord_load(int vmfd, struct vm_record *out, struct qstill_error *err);
int vmrecord_save(int vmfd, const struct vm_record *rec,
                  struct qstill_error *err);
/* CORRUPT when it was changed after it was written. */
int vmrecord_check_sum(int vmfd, struct qstill_error *err);
void vmrecord_fini(struct vm_record *rec);

struct vm_disk *vmrecord_disk(const struct vm_record *rec, const char *name);
/* A head is hidden no more. */
int vmrecord_set_head(struct vm_record *rec, const char *disk, const char *path,
                      const char *format, struct qstill_error *err);
int vmrecord_set_current(struct vm_record *rec, const char *id,
                         struct qstill_error *err);
int vmrecord_set_mapped(struct vm_record *rec, const char *id,
                        struct qstill_error *err);
/* Adds a hidden layer; one that is known already is fine. */
int vmrecord_hide(struct vm_record *rec, const char *disk, const char *path,
                  const char *format, struct qstill_error *err);
/* The same with what it was (layer_hidden()). */
int vmrecord_hide_as(struct vm_record *rec, const struct vm_hidden *layer,
                     struct qstill_error *err);
/* Its strings become the record's. */
int vmrecord_copy_layer(struct vm_record *rec, const struct vm_hidden *from,
                        struct vm_hidden *to, struct qstill_error *err);
/* Appends an entry, whose strings and arrays are the record's already. */
int vmrecord_add_trash(struct vm_record *rec, const struct vm_trash *trash,
                       struct qstill_error *err);
void vmrecord_drop_trash(struct vm_record *rec, const struct vm_trash *trash);
/* Of a hidden layer: it stays as long as several others share it. */
void vmrecord_keep(struct vm_record *rec, const char *path);
void vmrecord_unhide(struct vm_record *rec, const char *path);
int vmrecord_set_launch(struct vm_record *rec,
                        const struct launch_record *launch,
                        struct qstill_error *err);

#endif
