/* SPDX-License-Identifier: MIT */
/*
 * One image file: info (with the header of LUKS), check, and a map that must be
 * whole and in order. A check may find anything; it must end, and must not find
 * less damage than a map that was refused as corrupt.
 */
#include <stdlib.h>
#include <string.h>

#include "qstill-image.h"

#include "../lib/memio_dir.h"
#include "../lib/memio_layers.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int extent(void *user, const struct qstill_image_extent *e)
{
    uint64_t *next = user;

    if (e->start != *next || e->length == 0)
        memio_die("map: %llu follows %llu", (unsigned long long)e->start,
                  (unsigned long long)*next);
    if (e->has_offset && e->compressed)
        memio_die("map: an offset of nothing at %llu",
                  (unsigned long long)e->start);
    if (!e->data && !e->zero)
        memio_die("map: neither data nor zero");
    *next += e->length;
    return 0;
}

/* No key lies over the header or the data. */
static void judge_luks(const struct qstill_image_luks *l)
{
    if (!l->cipher_alg || !l->cipher_mode || !l->ivgen_alg || !l->hash_alg ||
        strlen(l->uuid) > 40 || l->master_key_iters == 0)
        memio_die("luks: a field is missing");
    for (size_t i = 0; i < l->slot_count; i++)
        if (l->slots[i].key_offset < 4096 ||
            l->slots[i].key_offset > l->payload_offset)
            memio_die("luks: slot %zu at %llu", i,
                      (unsigned long long)l->slots[i].key_offset);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *path = memio_path(memio_layers_dir(), "l0");
    struct qstill_image_info *info = NULL;
    struct qstill_image_check *check = NULL;
    struct qstill_error err;
    uint64_t next = 0;
    int mapped;

    memio_put(path, data, size);
    if (qstill_image_info(path, "qcow2", &info, &err) < 0)
        return 0;
    if (info->luks)
        judge_luks(info->luks);
    mapped = qstill_image_map(path, "qcow2", extent, &next, &err);
    if (mapped == 0 && next != info->virtual_size)
        memio_die("map: ends at %llu of %llu", (unsigned long long)next,
                  (unsigned long long)info->virtual_size);
    if (mapped < 0 && !err.message[0])
        memio_die("an error without a message");
    qstill_image_check(path, "qcow2", &check, &err);
    qstill_image_check_free(check);
    qstill_image_info_free(info);
    return 0;
}
