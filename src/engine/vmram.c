/* SPDX-License-Identifier: MIT */
#include "vmram.h"

#include <string.h>

#include "memstate/procmem.h"
#include "session.h"

/* Made anew by machine init in a new process, and not part of an in-place
 * load: fw_cfg blobs and option ROMs behind PCI BARs. */
static bool made_at_init(const char *id)
{
    size_t n = strlen(id);

    return strncmp(id, "/rom@", 5) == 0 ||
           (n > 4 && strcmp(id + n - 4, ".rom") == 0);
}

static int find_missing(struct session *s, struct qmp_ram *ram, bool exact,
                        struct qstill_error *err)
{
    CLEANUP(procmem_closep) struct procmem *mem = NULL;
    CLEANUP(freep) struct procmem_block *b = NULL;

    if (procmem_open(&mem, s->pid, err) < 0)
        return err->code;
    b = calloc(ram->count + 1, sizeof(*b));
    if (!b)
        return err_nomem(err);
    for (size_t i = 0; i < ram->count; i++) {
        b[i].id = ram->blocks[i].name;
        b[i].used = ram->blocks[i].used;
        b[i].max = ram->blocks[i].total;
        b[i].hva = ram->blocks[i].hva;
        b[i].how = b[i].hva ? PROCMEM_KNOWN : PROCMEM_UNKNOWN;
    }
    if (procmem_find(mem, b, ram->count, err) < 0)
        return err->code;
    /* Of several places with the same bytes any will do to read what nobody
     * writes, but not to write it, nor to see who does. */
    exact = exact || s->status.running;
    for (size_t i = 0; i < ram->count; i++)
        if (!exact || b[i].how != PROCMEM_SAME || made_at_init(b[i].id))
            ram->blocks[i].hva = b[i].hva;
    return 0;
}

/* QEMU gives a name to what it migrates. A memory backend that no device uses
 * has none: the machine does without its content. (Nor has virtio-pmem's: a VM
 * with one is refused, see modes.c.) */
static void drop_unnamed(struct qmp_ram *ram)
{
    size_t kept = 0;

    for (size_t i = 0; i < ram->count; i++)
        if (ram->blocks[i].name[0])
            ram->blocks[kept++] = ram->blocks[i];
        else
            free(ram->blocks[i].name);
    ram->count = kept;
}

int vmram_find(struct session *s, enum vmram_use use, struct qmp_ram *ram,
               struct capture_source **out, size_t *count,
               struct qstill_error *err)
{
    CLEANUP(freep) struct capture_source *list = NULL;
    bool missing = false;
    size_t n = 0;

    if (qmp_ram_read(s->qmp, ram, err) < 0)
        return err->code;
    drop_unnamed(ram);
    if (qmp_ram_find_addresses(s->qmp, ram, err) < 0)
        return err->code;
    for (size_t i = 0; i < ram->count; i++)
        missing = missing || ram->blocks[i].hva == 0;
    if (missing && find_missing(s, ram, use == VMRAM_WRITTEN, err) < 0)
        return err->code;
    list = calloc(ram->count + 1, sizeof(*list));
    if (!list)
        return err_nomem(err);
    for (size_t i = 0; i < ram->count; i++) {
        const struct qmp_ram_block *b = &ram->blocks[i];

        if (!b->hva && made_at_init(b->name))
            continue;
        if (!b->hva)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "RAM block %s cannot be found in QEMU's memory",
                           b->name);
        list[n].id = b->name;
        list[n].hva = b->hva;
        list[n].size = b->used;
        list[n++].page_size = (uint32_t)b->page_size;
    }
    *out = take_ptr(&list);
    *count = n;
    return 0;
}

/* Addresses only where QEMU tells them in its list (7.2 does not). */
static bool is_as_it_was(const struct qmp_ram_block *then,
                         const struct qmp_ram_block *now)
{
    return then->used == now->used && then->total == now->total &&
           (!now->hva || then->hva == now->hva);
}

static int changed(const char *id, const char *how, struct qstill_error *err)
{
    err_set(err, QSTILL_E_BUSY,
            "RAM block %s was %s while the snapshot was prepared", id, how);
    return err_hint(err, "take the snapshot again");
}

int vmram_check(struct session *s, const struct qmp_ram *then,
                struct qstill_error *err)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram now = QMP_RAM_INIT;

    if (qmp_ram_read(s->qmp, &now, err) < 0)
        return err->code;
    drop_unnamed(&now);
    for (size_t i = 0; i < now.count; i++) {
        const struct qmp_ram_block *b = &now.blocks[i];
        const struct qmp_ram_block *was = qmp_ram_find(then, b->name);

        if (!was)
            return changed(b->name, "plugged in", err);
        if (!is_as_it_was(was, b))
            return changed(b->name, "changed", err);
    }
    for (size_t i = 0; i < then->count; i++)
        if (!qmp_ram_find(&now, then->blocks[i].name))
            return changed(then->blocks[i].name, "taken out", err);
    return 0;
}
