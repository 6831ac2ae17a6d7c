/* SPDX-License-Identifier: MIT */
/* What record_io.c writes down and record_replay.c reads. */
#ifndef TESTS_RECORD_IMPL_H
#define TESTS_RECORD_IMPL_H

#include <sys/stat.h>

#include "record_io.h"

enum record_type {
    REC_WRITE,    /* node, off, len, data; a clone too */
    REC_SIZE,     /* node, off: ftruncate */
    REC_GROW,     /* node, off + len: fallocate that may extend */
    REC_PUNCH,    /* node, off, len: reads as zeros now */
    REC_SYNC,     /* node */
    REC_CREATE,   /* node under name */
    REC_RENAME,   /* from name to `to` */
    REC_LINK,     /* name and, for the same file, `to` */
    REC_UNLINK,   /* name */
    REC_SYNC_DIR, /* name: the directory, "" for the top one */
    REC_ATTR,     /* mode, owner: not replayed */
};

struct record_op {
    enum record_type type;
    int node;
    uint64_t off;
    uint64_t len;
    uint8_t *data;
    char *name; /* relative to the watched directory */
    char *to;
    unsigned flags;        /* of a rename */
    struct timespec mtime; /* of the file, afterwards */
};

struct record_node {
    dev_t dev;
    ino_t ino;
    uint8_t *start; /* content when recording began; NULL: made later */
    size_t start_len;
    struct timespec mtime; /* then */
};

struct record_name {
    char *name;
    int node;
};

struct record {
    struct io io;
    char *dir;       /* absolute, no symbolic links */
    char *nodes_dir; /* see record_node_path() */
    const struct record *outer;
    struct io keeping;
    struct io_ops keeping_ops;
    struct record_op *ops;
    size_t op_count;
    struct record_node *nodes;
    size_t node_count;
    struct record_name *names; /* when recording began */
    size_t name_count;
};

/* DIR.nodes-XXX/INODE: where a node is while it has no name. */
const char *record_node_path(const struct record *r, int node);
/* The youngest of that inode number: numbers are used again. -1: none. */
int record_find_node(const struct record *r, const struct stat *st);

#endif
