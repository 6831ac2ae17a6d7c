/* SPDX-License-Identifier: MIT */
/*
 * What QEMU has open: the guest's disks, and the graph of block nodes below
 * them. Reads only; changes are in graph.h.
 */
#ifndef QSTILL_QMP_BLOCK_H
#define QSTILL_QMP_BLOCK_H

#include "base/error.h"

struct qstill_qmp;

/* How what the guest sees comes from the image file. */
enum qmp_shape {
    QMP_SHAPE_PLAIN,    /* a format node over the file, which shows all of it */
    QMP_SHAPE_STACKED,  /* a node in between, or on top, as of -blockdev
                           driver=copy-on-read, or raw over qcow2; throttle
                           nodes on top are none of the disk's shape */
    QMP_SHAPE_PART,     /* raw, with an offset or a size of its own */
    QMP_SHAPE_ELSEWHERE /* qcow2 that keeps its data in another file */
};

/* One image of a disk's chain. */
struct qmp_image {
    char *driver; /* "qcow2", "raw", "file", ... */
    char *path;   /* of its file, as QEMU tells it; "" when it has none */
    bool part;    /* raw, with an offset or a size of its own */
};

/* One front end (or a -drive without one) that has a medium. */
struct qmp_disk {
    char *device;        /* the -drive's id; "" with -blockdev */
    char *qdev;          /* the device's QOM path, as qom-set wants it; "" when
                            no device uses it */
    char *qdev_id;       /* its id=, "" when it has none */
    char *qdev_type;     /* "virtio-blk-pci", "ide-cd", ...; "" */
    char *root;          /* the node that the device has */
    char *filter;        /* of the throttle nodes from there on, the one right
                            over the head; NULL: the head is the root */
    char *node;          /* the head's node name */
    bool node_auto;      /* a name that QEMU made ("#block123"): it cannot be
                            reopened and changes with each start */
    char *path;          /* the head's file name as QEMU tells it: may be
                            relative to QEMU's cwd, or "json:..." */
    char *driver;        /* "qcow2", "raw", "vdi", ... */
    char *protocol;      /* driver below it: "file", "host_device", "nbd", ...;
                            "" when not known */
    char *protocol_node; /* its node name; "" when not known */
    char *protocol_path; /* its file name; "" when not known */
    bool read_only;
    bool removable; /* a -drive without a device counts too */
    bool cdrom;
    bool encrypted;
    uint64_t virtual_size;
    bool active; /* false: QEMU 10.0 and later, after a migration that nobody
                    has let run yet */
    enum qmp_shape shape; /* of the head, and of what overlays that we named
                             stand on */
    char *odd;            /* name of the node that is not plain; NULL */
    size_t chain_count;
    struct qmp_image *chain; /* head first, without filters */
};
struct qmp_disks {
    size_t count;
    struct qmp_disk *items; /* QEMU's order */
};
#define QMP_DISKS_INIT                                                         \
    {                                                                          \
        0                                                                      \
    }
int qmp_disks_read(struct qstill_qmp *q, struct qmp_disks *out,
                   struct qstill_error *err);
void qmp_disks_fini(struct qmp_disks *d);
/* For who has just put the disk on another node of the graph himself, as a job
 * does at its end: what qmp_disks_read() would say. */
struct qmp_graph;
int qmp_disk_move(struct qmp_disk *d, const struct qmp_graph *g,
                  const char *node, struct qstill_error *err);

/* One node of the graph. Pointers to nodes stay within the graph. */
struct qmp_node {
    char *name;
    bool name_auto;
    char *driver;
    char *path;         /* as QEMU tells it; "" for nodes without one */
    char *backing_path; /* what the live node says its backing file is; "" */
    bool read_only;
    bool active; /* true where QEMU does not tell (before 10.0) */
    bool encrypted;
    bool data_elsewhere; /* qcow2 with an external data file */
    bool filter; /* shows its child's content: throttle, commit_top, ... */
    bool cache_direct;
    bool cache_no_flush;
    char *detect_zeroes; /* "off", "on", "unmap" */
    uint64_t virtual_size;
    uint64_t disk_size;           /* allocated bytes of the file */
    const struct qmp_node *file;  /* the child "file", or NULL */
    const struct qmp_node *below; /* the next node of the backing chain: the
                                     child "backing", of a filter the one that
                                     it filters; NULL at the base */
};

/* Where the edges come from; the last is a guess by file names, made when QEMU
 * tells no edges, and ambiguous names make it fail (PRECONDITION). */
enum qmp_graph_source {
    QMP_GRAPH_CHILDREN, /* 11.1: query-named-block-nodes.children */
    QMP_GRAPH_DEBUG,    /* x-debug-query-block-graph */
    QMP_GRAPH_NAMES
};

struct qmp_graph {
    enum qmp_graph_source source;
    size_t count;
    struct qmp_node *nodes;
};
#define QMP_GRAPH_INIT                                                         \
    {                                                                          \
        QMP_GRAPH_CHILDREN, 0, 0                                               \
    }
/* All nodes, the protocol ones too. Cycles in what the peer says are CORRUPT,
 * so that following `below` and `file` always ends. */
int qmp_graph_read(struct qstill_qmp *q, struct qmp_graph *out,
                   struct qstill_error *err);
void qmp_graph_fini(struct qmp_graph *g);
/* *below: the name of the node that `node` has as its backing now, malloc'ed;
 * NULL for none. Asks for the edges alone, which costs QEMU a tenth of
 * qmp_graph_read(); PRECONDITION when the graph's source is another. */
int qmp_graph_backing(struct qstill_qmp *q, const struct qmp_graph *g,
                      const char *node, char **below, struct qstill_error *err);
/* Whether nodes of this driver show their child's content as it is. */
bool qmp_is_filter(const char *driver);
/* NULL when there is none of that name. */
const struct qmp_node *qmp_graph_find(const struct qmp_graph *g,
                                      const char *name);
/* The live chain, head first, without filters: those are passed over. At most
 * `max` entries are filled; returns the chain's whole length. */
size_t qmp_graph_chain(const struct qmp_node *head, const struct qmp_node **out,
                       size_t max);

/* Writes out what QEMU keeps of a node in its own memory, and has it synced. */
int qmp_node_flush(struct qstill_qmp *q, const char *node,
                   struct qstill_error *err);

#endif
