/* SPDX-License-Identifier: MIT */
/*
 * How the content of some RAM blocks must begin, judged by the block's id. It
 * tells blocks of one length from each other: QEMU's e1000, e1000e and BIOS
 * are all 256 KiB. It only ever rules out.
 */
#include <string.h>

#include "base/bytes.h"
#include "memstate/procmem_impl.h"

static bool ends_with(const char *s, const char *end)
{
    size_t len = strlen(s), n = strlen(end);

    return len >= n && strcmp(s + len - n, end) == 0;
}

static uint16_t get_le16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

/*
 * 55 AA; at 0x18 a pointer to "PCIR", which is followed by the ids of vendor
 * and device. A ROM in which there is no such header may be anything.
 */
static bool is_option_rom(const struct procmem_block *block,
                          const uint8_t *head, size_t len)
{
    size_t at;

    if (len < 0x20 || head[0] != 0x55 || head[1] != 0xaa)
        return false;
    at = get_le16(head + 0x18);
    if (at + 8 > len || memcmp(head + at, "PCIR", 4) != 0)
        return true;
    if (block->pci_vendor == 0 && block->pci_device == 0)
        return true;
    return get_le16(head + at + 4) == block->pci_vendor &&
           get_le16(head + at + 6) == block->pci_device;
}

/* Commands of 128 bytes; the first one (1: allocate) names a file. */
static bool is_table_loader(const struct procmem_block *block,
                            const uint8_t *head, size_t len)
{
    (void)block;
    return len >= 8 && memcmp(head, "\1\0\0\0etc/", 8) == 0;
}

static bool is_rsdp(const struct procmem_block *block, const uint8_t *head,
                    size_t len)
{
    (void)block;
    return len >= 8 && memcmp(head, "RSD PTR ", 8) == 0;
}

static const struct {
    const char *id_end;
    bool (*fits)(const struct procmem_block *block, const uint8_t *head,
                 size_t len);
} rules[] = {
    {".rom", is_option_rom},
    {"/rom@etc/table-loader", is_table_loader},
    {"/rom@etc/acpi/rsdp", is_rsdp},
};

bool procmem_content_fits(const struct procmem_block *block,
                          const uint8_t *head, size_t len)
{
    /* "pc.rom" holds no option ROM of its own: only a device's path does */
    if (!strchr(block->id, '/'))
        return true;
    for (size_t i = 0; i < ARRAY_LEN(rules); i++)
        if (ends_with(block->id, rules[i].id_end))
            return rules[i].fits(block, head, len);
    return true;
}
