/* SPDX-License-Identifier: MIT */
/*
 * An image and its backing files, down to the base; layer 0 is the top. Names
 * are resolved as QEMU does, but names with a protocol (json:, nbd:, ...),
 * missing formats, symbolic links, loops and chains of more than
 * CHAIN_MAX_LAYERS are refused (PRECONDITION).
 */
#ifndef QSTILL_QCOW2_CHAIN_H
#define QSTILL_QCOW2_CHAIN_H

#include "image.h"

#define CHAIN_MAX_LAYERS 256u

struct chain {
    const struct io *io;
    struct aio *aio;      /* for loading maps; sync or io_uring; NULL before */
    struct aio_stop stop; /* asked while maps are loaded; set by the opener */
    struct image **layers;
    size_t n;
    size_t linked; /* the first whose name is a symbolic link; 0: none */
};

/*
 * Opens all layers for reading. `lock`: whether to take the read locks; NULL
 * err entries name the layer. Maps are loaded by chain_load() or chain_view().
 */
enum chain_lock { CHAIN_UNLOCKED, CHAIN_LOCKED };
int chain_open(struct chain **out, const struct io *io, const char *path,
               enum qcow2_format format, enum chain_lock lock,
               struct qstill_error *err);
/* The same, unlocked; but an image of a format that is not known here may be
 * the bottom, or all of it. It is never read: chain_load() and a view of it are
 * refused (PRECONDITION). */
int chain_open_foreign(struct chain **out, const struct io *io,
                       const char *path, enum qcow2_format format,
                       struct qstill_error *err);
/* The bottom, if that is of such a format; or NULL. */
const struct image *chain_foreign(const struct chain *c);
void chain_close(struct chain *c);
void chain_closep(struct chain **c);

/* Loads the maps of layers [first, last] that are not loaded. */
int chain_load(struct chain *c, size_t first, size_t last,
               struct qstill_error *err);
void chain_forget(struct chain *c, size_t first, size_t last);

/*
 * What layers [first, last] together hold, each extent with the layer that it
 * comes from, up to the size of layer `first`. Where a layer ends before the
 * one above it, there are EXTENT_PAST_END extents, with the layer above.
 * Loads the maps that it needs; whoever does not need them beside the view has
 * each forgotten as soon as the view has it, for they are as large.
 */
enum chain_maps { CHAIN_KEEP_MAPS, CHAIN_FORGET_MAPS };
int chain_view(struct chain *c, size_t first, size_t last, enum chain_maps maps,
               struct extents *out, struct qstill_error *err);

/* The view of all layers; where what a foreign one shows would be seen, there
 * are EXTENT_FOREIGN extents. */
int chain_view_all(struct chain *c, enum chain_maps maps, struct extents *out,
                   struct qstill_error *err);

/*
 * The path of a backing name stored in the image at `overlay`: absolute, or
 * relative to the directory part of `overlay`. Free with free().
 */
int chain_resolve(const char *overlay, const char *name, char **out,
                  struct qstill_error *err);

/* Opens the image a header names as its backing file; *out is NULL without
 * one. Used by chain_open(), and for the children of a layer. */
int chain_backing_of(const struct image *img, char **path,
                     enum qcow2_format *format, struct qstill_error *err);

#endif
