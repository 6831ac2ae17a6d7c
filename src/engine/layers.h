/* SPDX-License-Identifier: MIT */
/*
 * The files that make up a VM's disks: frozen layers named by snapshots, heads
 * and hidden layers, with who is backed by whom. Reads image headers only.
 */
#ifndef QSTILL_ENGINE_LAYERS_H
#define QSTILL_ENGINE_LAYERS_H

#include <sys/types.h>
#include <time.h>

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
    const struct manifest *named; /* which names it, or NULL */
    bool head;
    bool hidden;
    bool trash;          /* neither merged nor written: kept for undo, or lies
                            between known ones and is nobody's, as that of a
                            damaged snapshot */
    bool keep;           /* hidden until it has one child or none */
    bool missing;        /* the file cannot be read; its error is forgotten */
    const char *backing; /* absolute; NULL for a base */
    struct layer *below; /* the known layer that is its backing, or NULL */
    size_t children;
    uint64_t allocated; /* disk blocks, bytes */
    dev_t dev;
    ino_t ino;
    struct timespec changed; /* its ctime */
    bool first_image;        /* where the disk came from: its path stays */
    bool stuck;              /* cannot be merged now */
    bool same;               /* it was found to be what it was */
    bool torn;               /* see qcow2/torn.h: no QEMU may write to it */
    /* see others_mark() */
    const char *other; /* who stands on it that is none of these; or NULL */
    bool other_fixed;  /* that no merge can give what it needs, as a file of
                          another VM of the store */
    /* of a running VM, see livechain_mark() */
    const char *node;    /* QEMU has it open in the live chain of its disk */
    uint64_t node_size;  /* its virtual size there, bytes */
    struct layer *above; /* the layer that reads it there; NULL for the head */
};

struct layers {
    const char *unsure; /* why others may stand on any of them, or NULL */
    size_t count;
    struct layer *items; /* strings in the session's arenas */
    size_t cap;
    size_t slot_count; /* a power of two */
    uint32_t *slots;
};

int layers_load(struct session *s, struct layers *out,
                struct qstill_error *err);
/* The same; headers of files that have not changed since `old` was loaded are
 * not read again. */
int layers_reload(struct session *s, const struct layers *old,
                  struct layers *out, struct qstill_error *err);
void layers_fini(struct layers *l);
struct layer *layers_find(const struct layers *l, const char *path);
/* By that very name. */
struct layer *layers_named(const struct layers *l, const char *path);
/* The first child of a layer behind `after` (NULL: the first), or NULL. */
struct layer *layers_child(const struct layers *l, const struct layer *of,
                           const struct layer *after);

/* The journal of one of our own merges, in the VM's directory. */
#define LAYERS_MERGE_JOURNAL ".merge"

/* Finishes or undoes that merge; one that can be left where it stands is left
 * when there is no room for it. What stays that was to go is told as a note. */
int layers_settle_merge(const struct session *s, struct qstill_error *err);

/*
 * What layers_collapse() would do if the snapshots that `gone` says were
 * deleted; `text`, unless NULL, tells it in words, and what it costs.
 * PRECONDITION or BUSY when a layer of theirs could not go because others stand
 * on it or have it open. Changes nothing.
 */
int layers_foresee(struct session *s, const struct journal *j,
                   bool (*gone)(void *user, const char *id), void *user,
                   struct buf *text, struct qstill_error *err);

/* Ends what a process that died in layers_collapse() left behind. */
int layers_settle(struct session *s, struct journal *j,
                  struct qstill_error *err);

/*
 * Merges hidden layers away where that is possible now, and forgets those that
 * are gone. What cannot be merged now stays hidden, which `text` tells; only
 * damage and lost connections are errors.
 */
int layers_collapse(struct session *s, struct journal *j, struct buf *text,
                    struct qstill_error *err);

#endif
