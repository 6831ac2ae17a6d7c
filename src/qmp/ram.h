/* SPDX-License-Identifier: MIT */
/*
 * The guest's RAM as QEMU has it: blocks, where they are in QEMU's memory, and
 * the backend objects behind them. The texts of the human monitor are parsed by
 * column names and tolerate others; they are no stable interface.
 */
#ifndef QSTILL_QMP_RAM_H
#define QSTILL_QMP_RAM_H

#include "base/error.h"

struct qstill_qmp;

struct qmp_ram_block {
    char *name; /* the id in the migration stream; "" for a block that is no
                   part of it (a memory backend that nothing uses) */
    uint64_t page_size;
    uint64_t offset; /* in QEMU's own RAM address space */
    uint64_t used;   /* what the migration stream carries */
    uint64_t total;
    uint64_t hva; /* address in the QEMU process; 0: not known */
};
struct qmp_ram {
    size_t count;
    struct qmp_ram_block *blocks; /* QEMU's order */
};
#define QMP_RAM_INIT                                                           \
    {                                                                          \
        0                                                                      \
    }
/* All blocks; their addresses where `info ramblock` has them (not in 7.2). */
int qmp_ram_read(struct qstill_qmp *q, struct qmp_ram *out,
                 struct qstill_error *err);
/*
 * Finds the addresses that are missing from `info mtree -f` and `gpa2hva`: one
 * command per range of a block. A block that no guest address leads to, or
 * whose region's name another block has too, keeps 0; answers that contradict
 * each other are FAILED. The mapping can change while the guest runs (BARs):
 * the block's address does not.
 */
int qmp_ram_find_addresses(struct qstill_qmp *q, struct qmp_ram *ram,
                           struct qstill_error *err);
void qmp_ram_fini(struct qmp_ram *ram);
/* NULL when there is none. */
struct qmp_ram_block *qmp_ram_find(const struct qmp_ram *ram, const char *name);

/* A guest-physical range that RAM or ROM answers. */
struct qmp_ram_range {
    uint64_t gpa;
    uint64_t size;
    uint64_t offset; /* in the region */
    char *region;    /* the region's name: not always the block's */
    bool rom;
};
struct qmp_ram_map {
    size_t count;
    struct qmp_ram_range *ranges; /* ascending, as QEMU prints them */
};
#define QMP_RAM_MAP_INIT                                                       \
    {                                                                          \
        0                                                                      \
    }
/* The address space "memory" (what devices and CPUs outside SMM see). */
int qmp_ram_map_read(struct qstill_qmp *q, struct qmp_ram_map *out,
                     struct qstill_error *err);
void qmp_ram_map_fini(struct qmp_ram_map *map);

/* Address in QEMU of a guest-physical one; NOT_FOUND when no RAM is there.
 * `region` (NULL, or QMP_REGION_MAX bytes) gets the region's name. */
#define QMP_REGION_MAX 256
int qmp_gpa2hva(struct qstill_qmp *q, uint64_t gpa, uint64_t *hva, char *region,
                struct qstill_error *err);

/* A memory-backend object. */
struct qmp_memdev {
    char *id;
    char *type; /* "memory-backend-ram", "-file", "-memfd", ... */
    uint64_t size;
    bool share;
    char *mem_path; /* of the file kind; "" else */
    bool machine;   /* the machine's own (-machine memory-backend=, plain -m) */
    bool block;     /* a RAM block has its name: in use (machine, NUMA, DIMM,
                       or a device) */
};
struct qmp_memdevs {
    size_t count;
    struct qmp_memdev *items;
};
#define QMP_MEMDEVS_INIT                                                       \
    {                                                                          \
        0                                                                      \
    }
/* `ram` (may be NULL) tells which are in use. */
int qmp_memdevs_read(struct qstill_qmp *q, const struct qmp_ram *ram,
                     struct qmp_memdevs *out, struct qstill_error *err);
void qmp_memdevs_fini(struct qmp_memdevs *m);

/* What a machine reset writes into memory (`info roms`). */
struct qmp_rom {
    char *name;
    char *region; /* "/rom@...": the RAM block that it is; "" when it is given
                     by address or lives in fw_cfg */
    uint64_t addr;
    uint64_t size;
    bool has_addr; /* it is written to guest-physical `addr` */
    bool rom;      /* into ROM (mem=rom) */
};
struct qmp_roms {
    size_t count;
    struct qmp_rom *items;
};
#define QMP_ROMS_INIT                                                          \
    {                                                                          \
        0                                                                      \
    }
int qmp_roms_read(struct qstill_qmp *q, struct qmp_roms *out,
                  struct qstill_error *err);
/* Appends what loader devices write (loaders.c), which is not in that list. */
int qmp_loaders_read(struct qstill_qmp *q, struct qmp_roms *out,
                     struct qstill_error *err);
void qmp_roms_fini(struct qmp_roms *r);

/* A part of a RAM block; whole pages. */
struct qmp_ram_piece {
    const char *block; /* of the qmp_ram it was found in */
    uint64_t offset;
    uint64_t length;
};
struct qmp_ram_pieces {
    size_t count;
    struct qmp_ram_piece *items;
};
#define QMP_RAM_PIECES_INIT                                                    \
    {                                                                          \
        0                                                                      \
    }
/*
 * Where a machine reset writes: all blocks behind the addresses of `roms`, in
 * ROM and, below 1 MiB, where RAM may shadow it, in the RAM too. They may
 * overlap.
 */
int qmp_roms_locate(const struct qmp_roms *roms, const struct qmp_ram_map *map,
                    const struct qmp_ram *ram, struct qmp_ram_pieces *out,
                    struct qstill_error *err);
void qmp_ram_pieces_fini(struct qmp_ram_pieces *p);

#endif
