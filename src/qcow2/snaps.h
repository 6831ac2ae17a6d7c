/* SPDX-License-Identifier: MIT */
/* The table of internal snapshots. */
#ifndef QSTILL_QCOW2_SNAPS_H
#define QSTILL_QCOW2_SNAPS_H

#include "image.h"

struct snap {
    uint64_t l1_offset;
    uint32_t l1_size;
    uint32_t date_sec;
    uint32_t date_nsec;
    uint64_t vm_clock_ns;
    uint64_t vm_state_size;
    uint64_t disk_size; /* the header's when the entry does not say */
    uint64_t icount;    /* UINT64_MAX: none */
    char *id;
    char *name;
};

struct snaps {
    struct snap *v;
    size_t n;
    uint64_t bytes; /* of the table */
};

/* `out` must be zeroed. CORRUPT: an entry outside the file or of impossible
 * sizes. */
int snaps_load(const struct image *img, struct snaps *out,
               struct qstill_error *err);
void snaps_fini(struct snaps *s);

#endif
