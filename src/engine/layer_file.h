/* SPDX-License-Identifier: MIT */
/* One image file of a disk: made, removed, recognised. */
#ifndef QSTILL_ENGINE_LAYER_FILE_H
#define QSTILL_ENGINE_LAYER_FILE_H

#include <stdint.h>

#include "base/error.h"

struct arena;
struct manifest;
struct manifest_disk;
struct qcow2_info;
struct session;
struct vm_disk;
struct vm_hidden;
struct vm_record;

/*
 * Creates an empty overlay of virtual_size bytes for a disk, backed by
 * `backing`, beside it or in disk_dir: "STEM.TAG.qcow2"; 0600 and owned by the
 * user that QEMU runs as. The path goes into the record's arena.
 */
int layer_create(struct session *s, const struct vm_disk *d,
                 uint64_t virtual_size, const char *backing,
                 const char *backing_format, const char *disk_dir,
                 const char *tag, const char **path, struct qstill_error *err);
/* Removes a file durably; one that is gone already is fine. */
int layer_remove(const char *path, struct qstill_error *err);
/* The same, unless a QEMU or one of us has it open: BUSY. It is durable when
 * the directory is synced. */
int layer_remove_unused(const char *path, struct qstill_error *err);
/* That alone. */
int layer_check_unused(const char *path, struct qstill_error *err);
/* Whether an overlay holds nothing of its own. */
int layer_is_empty(const char *path, const char *format, bool *empty,
                   struct qstill_error *err);
/* What identifies a frozen layer: device, inode and, for qcow2, the hash of
 * its header (in arena `a` of m). */
int layer_identify(struct manifest *m, struct manifest_disk *d,
                   struct qstill_error *err);
/* CORRUPT when the file is not the one that was frozen, NOT_FOUND when it is
 * gone. */
int layer_check(const struct manifest_disk *d, struct qstill_error *err);

/* An image below the first layer, which belongs to nobody here. What is no
 * regular file keeps ino 0, and counts as the same. What is no qcow2 image has
 * a sample of its bytes in the place of the header's hash. */
void layer_identify_base(struct arena *a, struct manifest_disk *d);
/* CORRUPT says what became of it. */
int layer_check_base(const struct manifest_disk *then,
                     const struct manifest_disk *now, struct qstill_error *err);

/* The same of a hidden layer; one whose identity is not known, that is gone, or
 * that is somebody's again is fine. */
int layer_identify_hidden(struct vm_record *rec, struct vm_hidden *h,
                          struct qstill_error *err);
int layer_check_hidden(const struct session *s, const struct vm_hidden *h,
                       struct qstill_error *err);
int layer_check_trash(const struct session *s, const struct vm_hidden *h,
                      struct qstill_error *err);
/* What it is is not known any more. */
void layer_forget(struct vm_hidden *h);
/* The manifest's is what vm.json notes; the file is asked where that is not
 * known. */
int layer_identify_as(struct manifest *m, struct manifest_disk *d,
                      const struct vm_hidden *h, struct qstill_error *err);
/* What a manifest says, as vm.json notes it; strings stay the manifest's. */
struct vm_hidden layer_hidden(const struct manifest_disk *d);
/* A file by its path, if it is hidden or in the trash. */
int layer_check_unnamed(const struct session *s, const char *path,
                        struct qstill_error *err);

/* What was written to a file, and the names of its directory, are durable. */
int layer_sync(const char *path, struct qstill_error *err);
int layer_sync_dir(const char *path, struct qstill_error *err);
/* CORRUPT when a guest does not see the same through both qcow2 images. */
int layer_compare(const char *a, const char *b, struct qstill_error *err);
/* The size of the disk that an image shows, as it says itself; 0 when it is in
 * a format that is not known here ("vdi"). */
int layer_virtual_size(const char *path, const char *format, uint64_t *size,
                       struct qstill_error *err);
/* What an image of that format ("qcow2", "raw") says about itself. */
int layer_info(const char *path, const char *format, struct qcow2_info *info,
               struct qstill_error *err);
bool layer_is_qcow2(const char *format);

/* What the header of a qcow2 image says it stands on. */
struct layer_backing {
    bool any;        /* something, whatever it is */
    char *path;      /* NULL: nothing, or no plain file */
    char *json;      /* of a "json:{...}" the braces; else NULL */
    char format[32]; /* "": not said */
};
int layer_backing_read(const char *path, struct layer_backing *out,
                       struct qstill_error *err);
void layer_backing_fini(struct layer_backing *b);

#endif
