/* SPDX-License-Identifier: MIT */
/*
 * libqstill: disk images without a VM. Reads qcow2 (versions 2 and 3) and raw
 * images and their chains, checks and compares them, takes layers out of a
 * chain, writes a chain as one image. The conventions are those of qstill.h.
 *
 * Formats are never guessed for backing files: an overlay must say "qcow2" or
 * "raw". Refused with QSTILL_E_PRECONDITION: encrypted images, external data
 * files, unknown incompatible features, backing names with a protocol,
 * symbolic links, files that are no regular files. QSTILL_E_CORRUPT: damage.
 * QSTILL_E_BUSY: somebody (a running VM, qemu-img) has the image open in a
 * way that does not go together with ours, by QEMU's own image locks.
 */
#ifndef QSTILL_IMAGE_H
#define QSTILL_IMAGE_H

#include "qstill.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------- info */

struct qstill_image_snapshot { /* an internal one */
    const char *id;
    const char *name;
    uint64_t vm_state_size;
    uint64_t disk_size;
    uint32_t date_sec;
    uint32_t date_nsec;
    uint64_t vm_clock_ns;
    uint64_t icount; /* instructions executed, with -icount; UINT64_MAX: not
                        recorded */
};

struct qstill_image_bitmap {
    const char *name;
    uint64_t granularity;
    bool in_use; /* not closed properly: its content is void */
    bool enabled;
};

struct qstill_image_luks_slot {
    bool active;
    uint64_t key_offset; /* bytes, in the LUKS header */
    uint32_t iters;      /* of an active one */
    uint32_t stripes;
};

/* What the LUKS header in a qcow2 image says, without any key; names as
 * qemu-img has them. */
struct qstill_image_luks {
    const char *cipher_alg; /* "aes-256" */
    const char *cipher_mode;
    const char *ivgen_alg;
    const char *ivgen_hash_alg; /* of "essiv", else NULL */
    const char *hash_alg;
    const char *uuid;
    uint64_t payload_offset;
    uint32_t master_key_iters;
    size_t slot_count;
    const struct qstill_image_luks_slot *slots;
};

struct qstill_image_info {
    const char *path;
    const char *format; /* "qcow2" or "raw" */
    uint64_t virtual_size;
    uint64_t file_size;
    uint64_t actual_size;       /* bytes of disk blocks */
    const char *backing;        /* as stored, or NULL */
    const char *backing_format; /* or NULL */
    const char *backing_path;   /* resolved; NULL without one, or when the
                                   name is one that we refuse */
    /* qcow2 only from here on */
    uint32_t version;
    uint64_t cluster_size;
    uint32_t refcount_bits;
    const char *compression; /* "zlib" or "zstd" */
    bool dirty;
    bool corrupt;
    bool lazy_refcounts;
    bool extended_l2;
    bool encrypted;
    bool external_data;
    const char *data_file;  /* name of that file as stored; NULL: it is not */
    bool data_file_raw;     /* which reads as the guest sees the disk */
    const char *encryption; /* "aes" or "luks"; NULL */
    size_t snapshot_count;
    const struct qstill_image_snapshot *snapshots;
    size_t bitmap_count;
    const struct qstill_image_bitmap *bitmaps;
    const struct qstill_image_luks *luks; /* NULL: not "luks", or no header */
};

/*
 * What one image says about itself. Takes no lock, so that it can be asked of
 * a running VM's image. `format` is "qcow2", "raw", or NULL: qcow2 when the
 * file begins as one, else raw; say "raw" for a raw disk that a guest has had,
 * which can begin as anything. Free with qstill_image_info_free().
 */
int qstill_image_info(const char *path, const char *format,
                      struct qstill_image_info **out, struct qstill_error *err);
void qstill_image_info_free(struct qstill_image_info *info);

/* -------------------------------------------------------------------- map */

struct qstill_image_extent {
    uint64_t start;
    uint64_t length;
    uint32_t depth;  /* the layer that decides, 0 is the image itself */
    bool present;    /* a layer of the chain holds it, if only as zeros */
    bool zero;       /* reads as zeros */
    bool data;       /* there are bytes to read */
    bool compressed; /* they are compressed */
    bool has_offset;
    uint64_t offset; /* in that layer's file */
};

/* Non-zero ends the walk; qstill_image_map() then returns that number. */
typedef int qstill_image_extent_fn(void *user,
                                   const struct qstill_image_extent *extent);

/* What a guest sees through the chain of `path`, in order, without gaps; the
 * fields and their meaning are those of `qemu-img map --output=json`. */
int qstill_image_map(const char *path, const char *format,
                     qstill_image_extent_fn *fn, void *user,
                     struct qstill_error *err);

/* ------------------------------------------------------------------ check */

struct qstill_image_check {
    uint64_t image_end_offset;
    uint64_t total_clusters;
    uint64_t allocated_clusters;
    uint64_t fragmented_clusters;
    uint64_t compressed_clusters;
    uint64_t corruptions; /* QEMU's sense: data may get lost */
    uint64_t leaks;       /* clusters that nothing refers to */
    size_t message_count; /* the first 100 */
    const char *const *messages;
};

/* Counts all references of one qcow2 image and compares them with what is
 * stored. Damage is a result, not an error; QSTILL_E_CORRUPT only when the
 * file is too damaged to be counted. Changes nothing. */
int qstill_image_check(const char *path, const char *format,
                       struct qstill_image_check **out,
                       struct qstill_error *err);
void qstill_image_check_free(struct qstill_image_check *check);

/* ---------------------------------------------------------------- compare */

/*
 * A job that compares what guests see through two chains; where one disk is
 * larger the other counts as zeros there. The result is read from the finished
 * job.
 */
int qstill_image_compare(const char *a, const char *a_format, const char *b,
                         const char *b_format, struct qstill_job **out,
                         struct qstill_error *err);
/* Whether they are equal; if not, *offset is the first sector that differs. */
bool qstill_image_compare_equal(const struct qstill_job *job, uint64_t *offset);

/* ------------------------------------------------------------------ merge */

struct qstill_image_merge_options {
    size_t size;
    const char *format;      /* of TOP; NULL as above */
    const char *const *drop; /* drop_count layers of TOP's chain */
    size_t drop_count;
    const char *direction;       /* NULL or "auto", "up", "down", "new" */
    const char *const *children; /* other images whose backing file may be a
                                    dropped layer; those in the directories
                                    of the chain are found without, and
                                    given what they read only where their
                                    owner may read it, too */
    size_t child_count;
    uint64_t bwlimit; /* bytes per second; 0: none */
    bool dry_run;     /* only the plan, in qstill_job_text() */
};
#define QSTILL_IMAGE_MERGE_OPTIONS_INIT                                        \
    {                                                                          \
        sizeof(struct qstill_image_merge_options), 0, 0, 0, 0, 0, 0, 0, false  \
    }

/*
 * A job that takes layers out of the chain of TOP. Afterwards their files are
 * gone; every other file of the chain, and every other child of a dropped
 * layer, keeps its path and what a guest sees through it. Nothing is changed
 * when it is refused: NOT_FOUND (a layer that is not in the chain), USAGE
 * (TOP itself), PRECONDITION (also: a file would be given data that its owner,
 * or others who may read it, may not read), CORRUPT, BUSY, PERMISSION, NO_SPACE
 * (seen before the first change). A job that dies is finished or undone by
 * qstill_image_recover(), or by the next of these jobs that is about one of its
 * images.
 */
int qstill_image_merge(const char *top,
                       const struct qstill_image_merge_options *options,
                       struct qstill_job **out, struct qstill_error *err);

/* With what the job did first, where it finished one that had died or was
 * cancelled; not with what that one had done itself. */
struct qstill_image_merge_result {
    const char *direction; /* of the (last) merge: "none" when no data had to
                              be moved, "up", "down", "new" */
    uint64_t bytes_moved;  /* guest data read and written; dry run: would be */
    uint64_t bytes_cloned; /* shared by the filesystem instead (reflink) */
    uint64_t bytes_freed;  /* disk blocks given back, an estimate before */
    double ms;
    size_t bitmaps_dropped; /* dirty bitmaps that the result cannot hold: the
                               job's text names them and says why */
};
/* Of a finished merge job. */
void qstill_image_merge_result(const struct qstill_job *job,
                               struct qstill_image_merge_result *out);

/* Finishes or undoes a merge that died, by the journal beside `path`'s
 * directory; *did says whether there was one. */
int qstill_image_recover(const char *path, bool *did, struct qstill_error *err);

/* ---------------------------------------------------------------- flatten */

struct qstill_image_flatten_options {
    size_t size;
    const char *format;        /* of TOP; NULL as above */
    const char *output_format; /* "qcow2", or "raw"; NULL: "qcow2" */
    bool compress;             /* qcow2 only */
    uint64_t bwlimit;          /* guest bytes per second; 0: none */
    bool dry_run;              /* only the plan, in qstill_job_text() */
};
#define QSTILL_IMAGE_FLATTEN_OPTIONS_INIT                                      \
    {                                                                          \
        sizeof(struct qstill_image_flatten_options), 0, 0, false, 0, false     \
    }

/*
 * A job that writes what a guest sees through the chain of TOP into the new
 * image OUT, which has no backing file. The chain is only read; nobody may have
 * it open for writing meanwhile (BUSY). An existing OUT is BUSY and stays. OUT
 * appears, durable, when the job has succeeded; a job that fails, is cancelled
 * or dies leaves no file of that name (one that died: OUT's directory holds a
 * hidden file, .OUT.flatten, until the next job for OUT).
 *
 * A qcow2 OUT has the cluster size and the kind of compression of TOP (64 KiB
 * and zlib when TOP is raw), and TOP's mode. What reads as zeros takes no room.
 * With `compress`, compressed clusters of the chain are taken over as they are
 * where both are the same. Internal snapshots and bitmaps are not copied.
 */
int qstill_image_flatten(const char *top, const char *out,
                         const struct qstill_image_flatten_options *options,
                         struct qstill_job **job, struct qstill_error *err);

struct qstill_image_flatten_result {
    uint64_t bytes_moved;  /* guest data looked at; dry run: would be */
    uint64_t bytes_cloned; /* of it shared by the filesystem (reflink) */
    uint64_t bytes_stored; /* disk blocks of OUT; dry run: 0 */
    double ms;
};
/* Of a finished flatten job. */
void qstill_image_flatten_result(const struct qstill_job *job,
                                 struct qstill_image_flatten_result *out);

#ifdef __cplusplus
}
#endif

#endif
