/* SPDX-License-Identifier: MIT */
#include "ram.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/checked.h"
#include "client.h"
#include "field.h"
#include "monitor.h"
#include "ramtext.h"

#define OBJECTS         "/objects"
#define BACKEND_TYPE    "child<memory-backend-"
#define PAGE_SIZE_LEAST 4096

/* -------------------------------------------------------------------- freeing
 */

void qmp_ram_fini(struct qmp_ram *ram)
{
    for (size_t i = 0; i < ram->count; i++)
        free(ram->blocks[i].name);
    free(ram->blocks);
    *ram = (struct qmp_ram)QMP_RAM_INIT;
}

void qmp_ram_map_fini(struct qmp_ram_map *map)
{
    for (size_t i = 0; i < map->count; i++)
        free(map->ranges[i].region);
    free(map->ranges);
    *map = (struct qmp_ram_map)QMP_RAM_MAP_INIT;
}

void qmp_memdevs_fini(struct qmp_memdevs *m)
{
    for (size_t i = 0; i < m->count; i++) {
        free(m->items[i].id);
        free(m->items[i].type);
        free(m->items[i].mem_path);
    }
    free(m->items);
    *m = (struct qmp_memdevs)QMP_MEMDEVS_INIT;
}

void qmp_roms_fini(struct qmp_roms *r)
{
    for (size_t i = 0; i < r->count; i++) {
        free(r->items[i].name);
        free(r->items[i].region);
    }
    free(r->items);
    *r = (struct qmp_roms)QMP_ROMS_INIT;
}

/* -------------------------------------------------------------------- asking
 */

int qmp_ram_read(struct qstill_qmp *q, struct qmp_ram *out,
                 struct qstill_error *err)
{
    CLEANUP(freep) char *text = NULL;

    if (qmp_hmp(q, "info ramblock", &text, err) < 0)
        return err->code;
    return ramtext_blocks(text, out, err);
}

int qmp_ram_map_read(struct qstill_qmp *q, struct qmp_ram_map *out,
                     struct qstill_error *err)
{
    CLEANUP(freep) char *text = NULL;

    if (qmp_hmp(q, "info mtree -f", &text, err) < 0)
        return err->code;
    return ramtext_map(text, out, err);
}

int qmp_roms_read(struct qstill_qmp *q, struct qmp_roms *out,
                  struct qstill_error *err)
{
    CLEANUP(freep) char *text = NULL;

    if (qmp_hmp(q, "info roms", &text, err) < 0)
        return err->code;
    return ramtext_roms(text, out, err);
}

int qmp_gpa2hva(struct qstill_qmp *q, uint64_t gpa, uint64_t *hva, char *region,
                struct qstill_error *err)
{
    CLEANUP(freep) char *text = NULL;
    char line[64], unwanted[QMP_REGION_MAX];

    snprintf(line, sizeof(line), "gpa2hva 0x%" PRIx64, gpa);
    if (qmp_hmp(q, line, &text, err) < 0)
        return err->code;
    return ramtext_hva(text, hva, region ? region : unwanted, err);
}

struct qmp_ram_block *qmp_ram_find(const struct qmp_ram *ram, const char *name)
{
    for (size_t i = 0; i < ram->count; i++)
        if (strcmp(ram->blocks[i].name, name) == 0)
            return &ram->blocks[i];
    return NULL;
}

/* ------------------------------------------------------------ finding
 * addresses */

/* A region has the block's name, or the last part of it behind the device's
 * path ("0000:00:01.0/vga.vram"). */
static bool is_region_of(const struct qmp_ram_block *b, const char *region)
{
    size_t block = strlen(b->name), tail = strlen(region);

    if (block < tail || strcmp(b->name + block - tail, region) != 0)
        return false;
    return block == tail || b->name[block - tail - 1] == '/';
}

/* The one block that the range can belong to; NULL for none or several. */
static struct qmp_ram_block *block_of(const struct qmp_ram *ram,
                                      const struct qmp_ram_range *r)
{
    struct qmp_ram_block *hit = NULL;

    for (size_t i = 0; i < ram->count; i++) {
        if (!is_region_of(&ram->blocks[i], r->region))
            continue;
        if (hit)
            return NULL;
        hit = &ram->blocks[i];
    }
    if (hit && (r->offset > hit->total || r->size > hit->total - r->offset))
        return NULL;
    return hit;
}

/* One answer for a block: its first one is kept, further ones must agree. */
static int learn_address(struct qstill_qmp *q, struct qmp_ram_block *b,
                         const struct qmp_ram_range *r,
                         struct qstill_error *err)
{
    char region[QMP_REGION_MAX];
    uint64_t hva;
    int rc = qmp_gpa2hva(q, r->gpa, &hva, region, err);

    if (rc == QSTILL_E_NOT_FOUND || (rc == 0 && strcmp(region, r->region) != 0))
        return err_clear(
            err); /* the guest has moved it since; it tells nothing */
    if (rc < 0)
        return rc;
    if (hva < r->offset || (hva - r->offset) % PAGE_SIZE_LEAST != 0 ||
        (b->hva && b->hva != hva - r->offset))
        return err_set(err, QSTILL_E_FAILED,
                       "QEMU gives RAM block '%s' two addresses: 0x%" PRIx64
                       " at guest address 0x%" PRIx64 " does not fit",
                       b->name, hva, r->gpa);
    b->hva = hva - r->offset;
    return 0;
}

int qmp_ram_find_addresses(struct qstill_qmp *q, struct qmp_ram *ram,
                           struct qstill_error *err)
{
    CLEANUP(qmp_ram_map_fini) struct qmp_ram_map map = QMP_RAM_MAP_INIT;
    CLEANUP(freep) bool *known = calloc(ram->count + 1, sizeof(*known));
    size_t missing = 0;

    if (!known)
        return err_nomem(err);
    for (size_t i = 0; i < ram->count; i++) {
        known[i] = ram->blocks[i].hva != 0;
        missing += !known[i];
    }
    if (missing == 0)
        return 0;
    if (qmp_ram_map_read(q, &map, err) < 0)
        return err->code;
    for (size_t i = 0; i < map.count; i++) {
        struct qmp_ram_block *b = block_of(ram, &map.ranges[i]);

        if (b && !known[b - ram->blocks] &&
            learn_address(q, b, &map.ranges[i], err) < 0)
            return err->code;
    }
    return 0;
}

/* ------------------------------------------------------------ what reset
 * writes
 */

/* Between these, chipsets lay RAM over ROM or take it away (PAM). */
#define SHADOW_FROM 0xc0000u
#define SHADOW_TO   0x100000u

static int add_piece(struct qmp_ram_pieces *p, const struct qmp_ram_block *b,
                     uint64_t from, uint64_t to, struct qstill_error *err)
{
    const uint64_t mask = PAGE_SIZE_LEAST - 1;
    struct qmp_ram_piece *items;

    from &= ~mask;
    to = (to + mask) & ~mask;
    if (to > b->used)
        to = b->used & ~mask;
    if (from >= to)
        return 0;
    items = reallocarray(p->items, p->count + 1, sizeof(*items));
    if (!items)
        return err_nomem(err);
    p->items = items;
    items[p->count++] = (struct qmp_ram_piece){b->name, from, to - from};
    return 0;
}

/* The guest-physical range [from, to) as parts of blocks. */
static int locate_range(const struct qmp_ram_map *map,
                        const struct qmp_ram *ram, uint64_t from, uint64_t to,
                        struct qmp_ram_pieces *p, struct qstill_error *err)
{
    for (size_t i = 0; i < map->count; i++) {
        const struct qmp_ram_range *r = &map->ranges[i];
        const struct qmp_ram_block *b = block_of(ram, r);
        uint64_t first = from > r->gpa ? from : r->gpa;
        uint64_t last = to < r->gpa + r->size ? to : r->gpa + r->size;

        if (b && first < last &&
            add_piece(p, b, first - r->gpa + r->offset,
                      last - r->gpa + r->offset, err) < 0)
            return err->code;
    }
    return 0;
}

/* RAM begins at address 0: there the guest's address is the offset. */
static int locate_shadow(const struct qmp_ram_map *map,
                         const struct qmp_ram *ram, uint64_t from, uint64_t to,
                         struct qmp_ram_pieces *p, struct qstill_error *err)
{
    const struct qmp_ram_block *b = NULL;

    for (size_t i = 0; i < map->count && !b; i++)
        if (map->ranges[i].gpa == 0)
            b = block_of(ram, &map->ranges[i]);
    if (from < SHADOW_FROM)
        from = SHADOW_FROM;
    if (to > SHADOW_TO)
        to = SHADOW_TO;
    return b && from < to ? add_piece(p, b, from, to, err) : 0;
}

int qmp_roms_locate(const struct qmp_roms *roms, const struct qmp_ram_map *map,
                    const struct qmp_ram *ram, struct qmp_ram_pieces *out,
                    struct qstill_error *err)
{
    CLEANUP(qmp_ram_pieces_fini)
    struct qmp_ram_pieces p = QMP_RAM_PIECES_INIT;

    for (size_t i = 0; i < roms->count; i++) {
        const struct qmp_rom *r = &roms->items[i];
        const struct qmp_ram_block *b =
            *r->region ? qmp_ram_find(ram, r->region) : NULL;
        uint64_t end;

        if (b && add_piece(&p, b, 0, b->used, err) < 0)
            return err->code;
        if (!r->has_addr || add_u64(r->addr, r->size, &end))
            continue;
        if (locate_range(map, ram, r->addr, end, &p, err) < 0 ||
            locate_shadow(map, ram, r->addr, end, &p, err) < 0)
            return err->code;
    }
    *out = p;
    p = (struct qmp_ram_pieces)QMP_RAM_PIECES_INIT;
    return 0;
}

void qmp_ram_pieces_fini(struct qmp_ram_pieces *p)
{
    free(p->items);
    *p = (struct qmp_ram_pieces)QMP_RAM_PIECES_INIT;
}

/* ------------------------------------------------------------ memory backends
 */

/* Whether a RAM block has the backend's name: its id, or its path on machine
 * types before 4.0. */
static bool has_block(const struct qmp_ram *ram, const char *id,
                      const char *path)
{
    return ram && (qmp_ram_find(ram, id) || qmp_ram_find(ram, path));
}

static int memdev_fill(struct qstill_qmp *q, const json_t *object,
                       const struct qmp_ram *ram, const char *machine,
                       struct qmp_memdev *m, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf path = BUF_INIT;
    int rc;

    if (field_need(object, "name", &m->id, err) < 0)
        return err->code;
    if (buf_printf(&path, OBJECTS "/%s", m->id) < 0)
        return err_nomem(err);
    if (qmp_qom_get_string(q, (char *)path.data, "type", &m->type, err) < 0 ||
        qmp_qom_get_u64(q, (char *)path.data, "size", &m->size, err) < 0 ||
        qmp_qom_get_bool(q, (char *)path.data, "share", &m->share, err) < 0)
        return err->code;
    m->machine = strcmp(machine, (char *)path.data) == 0;
    m->block = has_block(ram, m->id, (char *)path.data);
    rc =
        qmp_qom_get_string(q, (char *)path.data, "mem-path", &m->mem_path, err);
    if (rc == QSTILL_E_NOT_FOUND) {
        m->mem_path = strdup("");
        rc = m->mem_path ? err_clear(err) : err_nomem(err);
    }
    return rc;
}

/* The machine's own backend, by its path; "" where there is none. */
static int read_machine_backend(struct qstill_qmp *q, char **out,
                                struct qstill_error *err)
{
    int rc = qmp_qom_get_string(q, "/machine", "memory-backend", out, err);

    if (rc == QSTILL_E_NOT_FOUND) {
        *out = strdup("");
        rc = *out ? err_clear(err) : err_nomem(err);
    }
    return rc;
}

int qmp_memdevs_read(struct qstill_qmp *q, const struct qmp_ram *ram,
                     struct qmp_memdevs *out, struct qstill_error *err)
{
    CLEANUP(qmp_memdevs_fini) struct qmp_memdevs m = QMP_MEMDEVS_INIT;
    CLEANUP(json_decrefp) json_t *list = NULL;
    CLEANUP(freep) char *machine = NULL;
    size_t i;
    json_t *v;

    if (client_call(q, "qom-list", json_pack("{s:s}", "path", OBJECTS), &list,
                    err) < 0 ||
        read_machine_backend(q, &machine, err) < 0)
        return err->code;
    m.items = calloc(json_array_size(list) + 1, sizeof(*m.items));
    if (!m.items)
        return err_nomem(err);
    json_array_foreach(list, i, v)
    {
        const char *type = field_string(v, "type", "");

        if (strncmp(type, BACKEND_TYPE, strlen(BACKEND_TYPE)) != 0)
            continue;
        if (memdev_fill(q, v, ram, machine, &m.items[m.count++], err) < 0)
            return err_wrap(err, "reading the memory backends");
    }
    *out = m;
    m = (struct qmp_memdevs)QMP_MEMDEVS_INIT;
    return 0;
}
