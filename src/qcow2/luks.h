/* SPDX-License-Identifier: MIT */
/* The LUKS header that an encrypted qcow2 image points to: what it says about
 * its keys, without any key. Version 1, the only one that QEMU writes. */
#ifndef QSTILL_QCOW2_LUKS_H
#define QSTILL_QCOW2_LUKS_H

#include "image.h"

#define LUKS_HEADER    592u /* bytes */
#define LUKS_SLOTS     8u
#define LUKS_UUID_SIZE 40u

struct luks_slot {
    bool active;
    uint32_t iters;
    uint32_t stripes;
    uint64_t key_offset; /* bytes, from the LUKS header's begin */
};

/* Names as QEMU has them. */
struct luks {
    const char *cipher; /* with the key's bits, "aes-256" */
    const char *mode;
    const char *ivgen;
    const char *ivgen_hash; /* of essiv; else NULL */
    const char *hash;
    char uuid[LUKS_UUID_SIZE + 1];
    uint64_t payload_offset;
    uint32_t master_key_iters;
    struct luks_slot slots[LUKS_SLOTS];
};

/* CORRUPT: no LUKS header, or one that cannot be; PRECONDITION: a version or an
 * algorithm that is not known here. Refused is what QEMU refuses. */
int luks_parse(const uint8_t raw[LUKS_HEADER], struct luks *out,
               struct qstill_error *err);
/* *found is false for an image whose header points to none. */
int luks_read(const struct image *img, bool *found, struct luks *out,
              struct qstill_error *err);

#endif
