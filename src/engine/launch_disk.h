/* SPDX-License-Identifier: MIT */
/*
 * Finding the place in a command line that opens a disk's image, and putting
 * another image there.
 *
 * Places known: -drive (file=, file.filename=), -blockdev in both forms (a
 * format node with its file inside, a format node over a node of its own, a
 * bare protocol node), -hda and its like, an image that stands alone. Refused:
 * places where the new image would not mean what the old one meant (an offset
 * into a raw file, keys spelled out in the command line, a backing chain that
 * is not the one in the images' headers: launch_backing.h).
 */
#ifndef QSTILL_ENGINE_LAUNCH_DISK_H
#define QSTILL_ENGINE_LAUNCH_DISK_H

#include "launch.h"
#include "launch_args.h"
#include "launch_opts.h"

/* How deep "file.file.filename" is looked for; a filter adds a level. The
 * prefix of the deepest is 8 times "file." long, and a new node under it. */
enum { NODE_DEPTH_MAX = 8, NODE_PREFIX_MAX = 64 };

struct disk_place {
    size_t arg;
    enum {
        PLACE_VALUE, /* the argument is the path */
        PLACE_DRIVE, /* -drive file=PATH */
        PLACE_NODE   /* PREFIXfilename=PATH of a -drive or -blockdev */
    } kind;
    char prefix[NODE_PREFIX_MAX]; /* "", "file.", "file.file.", ... */
};

/* How many places open `path`; *out is one of them when there is any. */
int launch_disk_find(const struct launch_args *args, const char *cwd,
                     const char *path, struct disk_place *out, size_t *places,
                     struct qstill_error *err);

/* Nodes that disks have stood on by name, until another image was put in. */
struct launch_loose {
    size_t count;
    struct {
        char *node;
        struct launch_disk disk; /* its strings are the caller's */
    } * items;
};
void launch_loose_fini(struct launch_loose *l);

/* PRECONDITION when there is no place, more than one, or a refused one. What
 * the disk lets go of is added to `loose`, and still in `args`: other disks may
 * stand on it, too. */
int launch_disk_put(struct launch_args *args, const char *cwd,
                    const struct launch_disk *disk, struct launch_loose *loose,
                    struct qstill_error *err);
/* After all disks were put: drops loose node `i` with what only it has used.
 * PRECONDITION when another option keeps it open for writing. */
int launch_disk_let_go(struct launch_args *args,
                       const struct launch_loose *loose, size_t i,
                       struct qstill_error *err);

/* Parses the value of a -drive or -blockdev; PRECONDITION otherwise. */
int launch_disk_opts(const struct launch_arg *arg, struct opts *out,
                     struct qstill_error *err);

/* The path in a name in which QEMU knows protocols: without "file:"; NULL when
 * it is of another one ("nbd:...", "json:{...}", "fat:..."). */
const char *launch_plain_name(const char *name);

/* Whether the argument is an image: one of -hda and its like, or one that
 * stands alone. */
bool launch_is_image(const struct launch_arg *arg);

/* Whether two names, relative to cwd, mean one file; neither needs to exist. */
bool launch_same_file(const char *cwd, const char *a, const char *b);

/* `path` made absolute, malloc'ed. */
char *launch_resolve(const char *cwd, const char *path);

#endif
