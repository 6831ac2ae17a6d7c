/* SPDX-License-Identifier: MIT */
/*
 * manifest.json of one snapshot: all that a revert needs, years later. Every
 * string belongs to the manifest's arena.
 */
#ifndef QSTILL_ENGINE_MANIFEST_H
#define QSTILL_ENGINE_MANIFEST_H

#include "base/arena.h"
#include "base/error.h"
#include "media.h"

#define MANIFEST_LABELS_MAX  256
#define MANIFEST_BLOCKS_MAX  1024
#define MANIFEST_DEVICES_MAX 16384
#define MANIFEST_BASES_MAX   256

/* The mode of a snapshot without memory. */
#define MANIFEST_MODE_DISK "disk"

struct manifest_disk {
    const char *name;
    const char *qdev;
    const char *device;
    const char *node;
    const char *path; /* the frozen layer, absolute */
    const char *format;
    uint64_t virtual_size;
    /* what it was when it was frozen; all 0 when that is not known */
    uint64_t dev, ino, file_size, mtime_ns;
    const char *header_hash; /* NULL where the format has none of ours */
    /* what stood below its disk's first layer then, from the top on, with path,
     * format and what it was; NULL in those made before it was kept */
    struct manifest_disk *bases;
    size_t base_count;
    /* of one of these that was a layer of another VM of the store (see
     * base_owners.h): that VM, and the snapshot that named it; or NULL */
    const char *owner_vm, *owner_snapshot;
};

struct manifest_block {
    const char *id; /* QEMU's RAM block id */
    uint64_t size;
    uint64_t page_size;
    bool shared;
    bool main;          /* guest RAM of a memory backend, not ROM or vram */
    const char *origin; /* object type of the backend, or NULL */
};

struct manifest_host {
    const char *cpu_model;
    const char *cpu_vendor;
    const char *microcode;
    uint64_t tsc_khz;
    const char *kernel;
    const char *hostname;
};

struct manifest {
    struct arena arena;
    const char *id;
    const char *name;
    const char *description;
    const char *parent_id;
    const char *lost_parent; /* tree.h: what it names, and is not there; not in
                                the file */
    const char *created_at;
    uint64_t created_ns; /* the same, for the order */
    size_t label_count;
    char **labels; /* "K=V" */
    bool protect;  /* its layers are immutable (protect.h) */
    bool quiesced;
    double frozen_ms;
    uint64_t frozen_filesystems, mounted_filesystems;
    bool memory_included;
    const char *mode;
    const char *mode_reason;
    const char *run_state; /* "running", "paused" or "stopped" */
    double pause_ms;
    double stall_ms;
    size_t disk_count;
    struct manifest_disk *disks;
    /* memory; unset without it */
    const char *machine; /* versioned name */
    uint64_t memory_bytes;
    uint64_t memory_written;
    size_t block_count;
    struct manifest_block *blocks;
    /* qmp/topology.h; of snapshots made before it was kept, none */
    size_t device_count;
    char **devices;
    /* userdevs.h; NULL in those made before it was kept */
    size_t user_device_count;
    char **user_devices;
    struct media media; /* those that it did not keep: NULL */
    const char *cpu_type;
    const char *accel;
    uint64_t vcpus;
    /* where it was made */
    const char *qemu_version;
    const char *qemu_sum;
    struct manifest_host host;
};

/* Strict: what earlier versions did not write may be missing; else each member
 * must be there, no other may be, and none may contradict another or the memory
 * directory beside it. Does not look at the sum. */
int manifest_load(int snapdirfd, struct manifest *out,
                  struct qstill_error *err);
/* CORRUPT when the snapshot's manifest was changed after it was written. */
int manifest_check_sum(int snapsfd, const struct manifest *m,
                       struct qstill_error *err);
/* sparefd: as json_file_write(). */
int manifest_save(int snapdirfd, const struct manifest *m, int sparefd,
                  struct qstill_error *err);
void manifest_fini(struct manifest *m);

struct manifest_disk *manifest_disk(const struct manifest *m, const char *name);

/* Whether a guest that its memory is given back to may be frozen. */
static inline bool manifest_wakes_frozen(const struct manifest *m)
{
    return m->memory_included && (m->quiesced || m->frozen_filesystems > 0);
}

#endif
