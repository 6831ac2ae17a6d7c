/* SPDX-License-Identifier: MIT */
/*
 * Finds the overlays of images: QEMU keeps no list of them, and one that is
 * forgotten when its backing file goes is lost. Looked at are the files in the
 * directories of the chain, and those that the caller names: qcow2, and the two
 * other formats that QEMU lets stand on qcow2 and raw images, qcow and qed,
 * which we cannot deal with and refuse. (A vmdk image stands on vmdk alone, and
 * a raw one on nothing.) What names its backing file on QEMU's command line
 * only cannot be found.
 */
#ifndef QSTILL_QCOW2_CHILDREN_H
#define QSTILL_QCOW2_CHILDREN_H

#include "chain.h"

struct child {
    char *path;
    size_t parent; /* layer of the chain that it names as its backing file */
    dev_t dev;
    ino_t ino;
    bool named; /* by the caller */
};

struct children {
    struct child *v;
    size_t n;
};

/*
 * What one operation, which does many merges, has seen of the files of their
 * directories: each of them has every name and every file's times looked at,
 * but only what is new or has changed is opened.
 */
struct children_seen;
struct children_seen *children_seen_new(void); /* NULL: out of memory */
void children_seen_free(struct children_seen *seen);

/*
 * Overlays of layers [first, last] of the chain that are no layers of it.
 * `named` are looked at, too. What cannot be opened, and an overlay that we
 * cannot deal with (unknown features, damage, no format named, or another than
 * the chain has, seen through a symbolic link), or one of these layers being
 * the external data file of another image, is an error: a merge would orphan
 * it. So is what reads layer `first` - 1, or one that is found, as a raw image:
 * their files are written. `out` must be zeroed; `seen` may be NULL.
 */
int children_find(const struct chain *c, size_t first, size_t last,
                  const char *const *named, size_t named_count,
                  struct children_seen *seen, struct children *out,
                  struct qstill_error *err);
void children_fini(struct children *ch);
/* PRECONDITION when `path` names format `there` for `below`, which is `here`.
 */
int child_check_format(const char *path, const char *below,
                       enum qcow2_format here, enum qcow2_format there,
                       struct qstill_error *err);
/* Whether the file is one of these, or cannot be told to be none. */
bool children_may_be(const struct chain *c, size_t first, size_t last,
                     const char *path);

/* A file that names a backing file, or an external data file. */
struct overlay {
    const char *path;
    const char *name;    /* of that file, as the header has it; NULL: it has
                            an external data file, and does not say which */
    const char *backing; /* the same as a path; NULL: it is no plain one, or
                            that of a data file, which QEMU takes from where it
                            runs */
    bool fixed; /* no merge can deal with it: a qed image, a data file's, or
                   seen through a symbolic link to elsewhere */
};

struct overlay_visitor {
    /* what the caller knows by its path need not be looked at; may be NULL */
    bool (*knows)(void *user, const char *path);
    int (*visit)(void *user, const struct overlay *o, struct qstill_error *err);
    void *user;
};

/*
 * For who removes a layer: every overlay in a directory, of which image ever;
 * and what one file stands on. What cannot be opened is an error here, too.
 * `seen` may be NULL.
 */
int children_each(const struct io *io, const char *dir,
                  struct children_seen *seen, const struct overlay_visitor *v,
                  struct qstill_error *err);
/* `path` may be a link; what is no regular file stands on nothing. */
int children_look_at(const struct io *io, const char *path,
                     const struct overlay_visitor *v, struct qstill_error *err);

#endif
