/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/qmp_peer.h"
#include "base/error.h"
#include "qmp/ram.h"
#include "qmp/ramtext.h"

static struct qstill_error err;

/* -------------------------------------------------------------- transcripts */

static void check_ram(const struct qmp_ram *ram, bool all_addresses)
{
    const struct qmp_ram_block *b = qmp_ram_find(ram, "ram0");

    assert_non_null(b);
    assert_int_equal(b->used, 32 << 20);
    assert_int_equal(b->page_size, 4096);
    assert_true(b->hva != 0);
    b = qmp_ram_find(ram, "0000:00:01.0/vga.vram");
    assert_non_null(b);
    assert_int_equal(b->hva != 0, all_addresses);
    assert_true(qmp_ram_find(ram, "pc.bios")->hva != 0);
    b = qmp_ram_find(ram, "/rom@etc/acpi/tables");
    assert_int_equal(b->used, 0x20000);
    assert_int_equal(b->total, 0x200000);
    assert_int_equal(b->hva != 0, all_addresses);
    /* the backend that nothing uses */
    b = qmp_ram_find(ram, "");
    assert_non_null(b);
    assert_int_equal(b->total, 1 << 20);
}

static void check_memdevs(const struct qmp_memdevs *m)
{
    assert_int_equal(m->count, 2);
    for (size_t i = 0; i < m->count; i++) {
        bool main_one = strcmp(m->items[i].id, "ram0") == 0;

        assert_int_equal(m->items[i].machine, main_one);
        assert_int_equal(m->items[i].block, main_one);
        assert_int_equal(m->items[i].share, main_one);
        assert_int_equal(m->items[i].size, (main_one ? 32 : 1) << 20);
        assert_string_equal(m->items[i].type, main_one ? "memory-backend-memfd"
                                                       : "memory-backend-ram");
        assert_string_equal(m->items[i].mem_path, "");
    }
}

static void check_roms(const struct qmp_roms *r)
{
    const struct qmp_rom *bios = NULL, *tables = NULL, *vapic = NULL;

    for (size_t i = 0; i < r->count; i++) {
        if (strcmp(r->items[i].name, "bios-256k.bin") == 0)
            bios = &r->items[i];
        if (strcmp(r->items[i].name, "etc/acpi/tables") == 0)
            tables = &r->items[i];
        if (strcmp(r->items[i].name, "kvmvapic.bin") == 0)
            vapic = &r->items[i];
    }
    assert_true(bios && tables && vapic);
    assert_true(bios->has_addr && bios->rom);
    assert_int_equal(bios->addr, 0xfffc0000);
    assert_int_equal(bios->size, 0x40000);
    assert_string_equal(bios->region, "");
    assert_string_equal(tables->region, "/rom@etc/acpi/tables");
    assert_false(tables->has_addr || vapic->has_addr);
    assert_string_equal(vapic->region, "");
    assert_int_equal(vapic->size, 0x2400);
}

static void replay_ram(const char *name, bool all_addresses)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;
    CLEANUP(qmp_ram_fini) struct qmp_ram again = QMP_RAM_INIT;
    CLEANUP(qmp_memdevs_fini) struct qmp_memdevs m = QMP_MEMDEVS_INIT;
    CLEANUP(qmp_roms_fini) struct qmp_roms roms = QMP_ROMS_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_replay(name, &q);

    assert_int_equal(qmp_ram_read(q, &ram, &err), 0);
    assert_int_equal(qmp_ram_find_addresses(q, &ram, &err), 0);
    check_ram(&ram, all_addresses);
    assert_int_equal(qmp_ram_read(q, &again, &err), 0);
    assert_int_equal(qmp_memdevs_read(q, &again, &m, &err), 0);
    check_memdevs(&m);
    assert_int_equal(qmp_roms_read(q, &roms, &err), 0);
    check_roms(&roms);
    qmp_peer_close(p, q);
}

static void ram_of_qemu_7_2_is_found_by_guest_address(void **state)
{
    (void)state;
    replay_ram("ram-7.2.txt", false);
}

static void ram_of_qemu_10_0_has_all_addresses(void **state)
{
    (void)state;
    replay_ram("ram-10.0.txt", true);
}

/* ------------------------------------------------------------ info ramblock */

static void columns_are_found_by_name(void **state)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;

    (void)state;
    assert_int_equal(
        ramtext_blocks(
            "  Block Name  RO   Used     PSize   HVA   Total  News\r\n"
            "  my block   rw   0x2000   2 MiB   0x7f00  0x4000  x\r\n"
            "\r\n",
            &ram, &err),
        0);
    assert_int_equal(ram.count, 1);
    assert_string_equal(ram.blocks[0].name, "my block");
    assert_int_equal(ram.blocks[0].used, 0x2000);
    assert_int_equal(ram.blocks[0].total, 0x4000);
    assert_int_equal(ram.blocks[0].page_size, 2 << 20);
    assert_int_equal(ram.blocks[0].hva, 0x7f00);
}

static void assert_blocks_fail(const char *text)
{
    struct qmp_ram ram = QMP_RAM_INIT;

    qmp_peer_error(&err, ramtext_blocks(text, &ram, &err), QSTILL_E_FAILED,
                   "cannot understand QEMU's 'info ramblock': '");
    assert_int_equal(ram.count, 0);
}

#define BLOCK_HEAD "Block Name PSize Offset Used Total\n"

static void a_block_table_that_makes_no_sense_fails(void **state)
{
    (void)state;
    assert_blocks_fail("");
    assert_blocks_fail("unknown command: 'info ramblock'\r\n");
    assert_blocks_fail(BLOCK_HEAD "pc.ram 4 KiB 0x0 0x1000\n");
    assert_blocks_fail(BLOCK_HEAD "pc.ram 4 KiB 0x0 0x1000 0xzz\n");
    assert_blocks_fail(BLOCK_HEAD "pc.ram 4 XiB 0x0 0x1000 0x1000\n");
    assert_blocks_fail(BLOCK_HEAD "pc.ram 0 KiB 0x0 0x1000 0x1000\n");
    assert_blocks_fail(BLOCK_HEAD "pc.ram -4 KiB 0x0 0x1000 0x1000\n");
    assert_blocks_fail(BLOCK_HEAD "pc.ram 4 KiB 0x0 0x2000 0x1000\n");
    assert_blocks_fail(BLOCK_HEAD
                       "pc.ram 4 KiB 0x0 0x1000 0x11111111111111111\n");
    assert_blocks_fail("Block Name PSize Used\npc.ram 4 KiB 0x1000\n");
    assert_blocks_fail("Block Name 1 2 3 4 5 6 7 8 9 a b c d e f g h\n");
}

/* ------------------------------------------------------------ info mtree -f */

static void the_view_named_memory_is_taken(void **state)
{
    CLEANUP(qmp_ram_map_fini) struct qmp_ram_map map = QMP_RAM_MAP_INIT;

    (void)state;
    assert_int_equal(
        ramtext_map(
            "FlatView #0\n AS \"I/O\", root: io\n Root memory region: io\n"
            "  0000000000000000-0000000000000fff (prio 0, ram): wrong\n\n"
            "FlatView #1\n AS \"cpu-memory-0\", root: system\n"
            " AS \"memory\", root: system\n Root memory region: system\n"
            "  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\n"
            "  00000000000a0000-00000000000affff (prio 1, ramd): vfio\n"
            "  00000000000b0000-00000000000bffff (prio 1, i/o): vga\n"
            "  00000000000c0000-00000000000fffff (prio -1, rom): pc.bios"
            " @0000000000020000 KVM\n"
            "  00000000fe000000-00000000fe0fffff (prio 0, nv-ram): nvdimm0\n"
            "  00000000ffe00000-00000000ffffffff (prio 0, romd): flash0\n\n"
            "FlatView #2\n AS \"cpu-smm-0\", root: memory\n"
            "  0000000000000000-000000000009ffff (prio 0, ram): wrong\n",
            &map, &err),
        0);
    assert_int_equal(map.count, 4);
    assert_string_equal(map.ranges[0].region, "pc.ram");
    assert_int_equal(map.ranges[0].size, 0xa0000);
    assert_false(map.ranges[0].rom);
    assert_string_equal(map.ranges[1].region, "pc.bios");
    assert_int_equal(map.ranges[1].gpa, 0xc0000);
    assert_int_equal(map.ranges[1].offset, 0x20000);
    assert_true(map.ranges[1].rom);
    assert_string_equal(map.ranges[2].region, "nvdimm0");
    assert_true(map.ranges[3].rom);
}

static void a_map_without_memory_fails(void **state)
{
    struct qmp_ram_map map = QMP_RAM_MAP_INIT;

    (void)state;
    qmp_peer_error(&err, ramtext_map("unknown command", &map, &err),
                   QSTILL_E_FAILED, "shows no address space \"memory\"");
}

/* ------------------------------------------------------ addresses, by script
 */

#define HMP(line)                                                              \
    "C {\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\"" \
    ":\"" line "\"}}\n"
#define TWO_BLOCKS                                                             \
    HMP("info ramblock")                                                       \
    "S {\"return\":\"" BLOCKS "\"}\n"
#define BLOCKS                                                                 \
    "Block Name PSize Offset Used Total\\r\\n"                                 \
    "pc.ram 4 KiB 0x0 0x200000 0x200000\\r\\n"                                 \
    "0000:01/vga.vram 4 KiB 0x0 0x1000 0x1000\\r\\n"                           \
    "0000:02/vga.vram 4 KiB 0x0 0x1000 0x1000\\r\\n"                           \
    "0000:01/x.rom 4 KiB 0x0 0x1000 0x1000\\r\\n"
#define MAP                                                                    \
    HMP("info mtree -f")                                                       \
    "S {\"return\":\"FlatView #1\\n AS \\\"memory\\\", root: system\\n"        \
    "  0000000000000000-00000000000fffff (prio 0, ram): pc.ram\\n"             \
    "  0000000000100000-00000000001fffff (prio 0, ram): pc.ram"                \
    " @0000000000100000\\n"                                                    \
    "  00000000e0000000-00000000e0000fff (prio 0, ram): vga.vram\\n"           \
    "  00000000f0000000-00000000f0000fff (prio 0, rom): x.rom\\n\"}\n"
#define AT(gpa, region, hva)                                                   \
    HMP("gpa2hva " gpa)                                                        \
    "S {\"return\":\"Host virtual address for " gpa " (" region ") is " hva    \
    "\\r\\n\"}\n"

static int find_by_script(const char *script, struct qmp_ram *ram)
{
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(script, &q);
    int rc = qmp_ram_read(q, ram, &err);

    if (rc == 0)
        rc = qmp_ram_find_addresses(q, ram, &err);
    qmp_peer_close(p, q);
    return rc;
}

static void ambiguous_and_moved_regions_keep_no_address(void **state)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;

    (void)state;
    assert_int_equal(
        find_by_script(
            TWO_BLOCKS MAP AT("0x0", "pc.ram", "0x7f0000000000")
                AT("0x100000", "pc.ram", "0x7f0000100000")
                    HMP("gpa2hva 0xf0000000") "S {\"return\":\"No memory is "
                                              "mapped at address "
                                              "0xf0000000\"}",
            &ram),
        0);
    assert_int_equal(ram.blocks[0].hva, 0x7f0000000000);
    assert_int_equal(ram.blocks[1].hva, 0); /* two are called vga.vram */
    assert_int_equal(ram.blocks[2].hva, 0);
    assert_int_equal(ram.blocks[3].hva, 0); /* unmapped in between */
}

static void addresses_that_contradict_each_other_fail(void **state)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;

    (void)state;
    qmp_peer_error(
        &err,
        find_by_script(TWO_BLOCKS MAP AT("0x0", "pc.ram", "0x7f0000000000")
                           AT("0x100000", "pc.ram", "0x7f0000200000"),
                       &ram),
        QSTILL_E_FAILED, "QEMU gives RAM block 'pc.ram' two addresses");
}

static void a_guest_address_without_ram_is_not_found(void **state)
{
    char region[QMP_REGION_MAX];
    uint64_t hva = 0;

    (void)state;
    qmp_peer_error(&err,
                   ramtext_hva("Memory at address 0xfec00000 is not RAM\r\n",
                               &hva, region, &err),
                   QSTILL_E_NOT_FOUND, "is not RAM");
    qmp_peer_error(
        &err, ramtext_hva("unknown command: 'gpa2hva'\r\n", &hva, region, &err),
        QSTILL_E_FAILED, "cannot understand QEMU's 'gpa2hva'");
    qmp_peer_error(&err,
                   ramtext_hva("Host virtual address for 0x0 (a) is 0x0", &hva,
                               region, &err),
                   QSTILL_E_FAILED, "cannot understand QEMU's 'gpa2hva'");
    assert_int_equal(
        ramtext_hva("Host virtual address for 0x0 (a (b)) is 0x7f01\r\n", &hva,
                    region, &err),
        0);
    assert_string_equal(region, "a (b)");
    assert_int_equal(hva, 0x7f01);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ram_of_qemu_7_2_is_found_by_guest_address),
        cmocka_unit_test(ram_of_qemu_10_0_has_all_addresses),
        cmocka_unit_test(columns_are_found_by_name),
        cmocka_unit_test(a_block_table_that_makes_no_sense_fails),
        cmocka_unit_test(the_view_named_memory_is_taken),
        cmocka_unit_test(a_map_without_memory_fails),
        cmocka_unit_test(ambiguous_and_moved_regions_keep_no_address),
        cmocka_unit_test(addresses_that_contradict_each_other_fail),
        cmocka_unit_test(a_guest_address_without_ram_is_not_found),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
