/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../lib/qmp_peer.h"
#include "qmp/ram.h"
#include "qmp/topology.h"

static struct qstill_error err;

/* As QEMU 7.2 prints it, shortened. */
#define TREE                                                                   \
    "bus: main-system-bus\r\n"                                                 \
    "  type System\r\n"                                                        \
    "  dev: i440FX-pcihost, id \"\"\r\n"                                       \
    "    pci-hole64-size = 2147483648 (2 GiB)\r\n"                             \
    "    bus: pci.0\r\n"                                                       \
    "      type PCI\r\n"                                                       \
    "      dev: virtio-blk-pci, id \"vd0\"\r\n"                                \
    "        ioeventfd = true\r\n"                                             \
    "        addr = 05.0\r\n"                                                  \
    "        class SCSI controller, addr 00:05.0, pci id 1af4:1001\r\n"        \
    "        bar 4: mem at 0xfe000000 [0xfe003fff]\r\n"                        \
    "        bus: virtio-bus\r\n"                                              \
    "          type virtio-pci-bus\r\n"                                        \
    "          dev: virtio-blk-device, id \"\"\r\n"                            \
    "            drive = \"%s\"\r\n"                                           \
    "            num-queues = %d (0x1)\r\n"                                    \
    "  dev: ioapic, id \"\"\r\n"                                               \
    "    gpio-in \"\" 24\r\n"

static void parse(struct qmp_names *out, const char *drive, int queues)
{
    char text[2048];

    snprintf(text, sizeof(text), TREE, drive, queues);
    assert_int_equal(qmp_topology_parse(text, out, &err), 0);
}

static void assert_begins(const char *line, const char *label)
{
    assert_int_equal(strncmp(line, label, strlen(label)), 0);
    assert_int_equal(line[strlen(label)], ' ');
}

static void each_device_is_a_line_with_bus_type_id_and_address(void **state)
{
    CLEANUP(qmp_names_fini) struct qmp_names n = QMP_NAMES_INIT;

    (void)state;
    parse(&n, "n0", 1);
    assert_int_equal(n.count, 4);
    assert_begins(n.items[0], "main-system-bus/i440FX-pcihost");
    assert_begins(n.items[1], "pci.0/virtio-blk-pci,vd0@05.0");
    assert_begins(n.items[2], "virtio-bus/virtio-blk-device");
    assert_begins(n.items[3], "main-system-bus/ioapic");
}

static void properties_count_but_not_the_present_drive(void **state)
{
    CLEANUP(qmp_names_fini) struct qmp_names a = QMP_NAMES_INIT;
    CLEANUP(qmp_names_fini) struct qmp_names b = QMP_NAMES_INIT;
    CLEANUP(qmp_names_fini) struct qmp_names c = QMP_NAMES_INIT;

    (void)state;
    parse(&a, "n0", 1);
    parse(&b, "qs0-other", 1);
    parse(&c, "n0", 2);
    for (size_t i = 0; i < a.count; i++)
        assert_string_equal(a.items[i], b.items[i]);
    assert_string_equal(a.items[1], c.items[1]);
    assert_string_not_equal(a.items[2], c.items[2]);
}

static void registers_of_the_firmware_counted_before(void **state)
{
    static const char text[] = "dev: PIIX4_PM, id \"\"\n"
                               "  smb_io_base = 45312 (0xb100)\n"
                               "  disable_s3 = 0 (0x0)\n"
                               "dev: other, id \"\"\n"
                               "  smb_io_base = 45312 (0xb100)\n"
                               "  drive = \"n0\"\n";
    CLEANUP(qmp_names_fini) struct qmp_names now = QMP_NAMES_INIT;
    CLEANUP(qmp_names_fini) struct qmp_names before = QMP_NAMES_INIT;

    (void)state;
    assert_int_equal(qmp_topology_parse(text, &now, &err), 0);
    assert_int_equal(qmp_topology_parse_before(text, &before, &err), 0);
    assert_int_equal(before.count, 2);
    assert_string_not_equal(now.items[0], before.items[0]);
    assert_begins(before.items[0], "/PIIX4_PM");
    assert_string_equal(now.items[1], before.items[1]);
}

static void a_text_without_devices_is_an_error(void **state)
{
    CLEANUP(qmp_names_fini) struct qmp_names n = QMP_NAMES_INIT;

    (void)state;
    assert_int_equal(
        qmp_topology_parse("unknown command: 'info qtree'\r\n", &n, &err),
        QSTILL_E_FAILED);
    assert_non_null(strstr(err.message, "lists no devices"));
    assert_int_equal(n.count, 0);
}

static void hostile_trees_end_in_an_error(void **state)
{
    CLEANUP(qmp_names_fini) struct qmp_names n = QMP_NAMES_INIT;
    char deep[400];

    (void)state;
    memset(deep, ' ', sizeof(deep));
    strcpy(deep + 300, "dev: x, id \"\"\n");
    assert_int_equal(qmp_topology_parse(deep, &n, &err), QSTILL_E_FAILED);
    assert_non_null(strstr(err.message, "too deep"));
    /* a device whose line ends early, and one of a very long name */
    memset(deep, 'a', sizeof(deep));
    memcpy(deep, "dev: ", 5);
    deep[399] = '\0';
    assert_int_equal(qmp_topology_parse(deep, &n, &err), 0);
    assert_int_equal(qmp_topology_parse("dev: x, id \"abc", &n, &err), 0);
    assert_begins(n.items[n.count - 1], "/x,abc");
}

static void memory_devices_are_part_of_it(void **state)
{
    CLEANUP(qmp_names_fini) struct qmp_names n = QMP_NAMES_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"human-monitor-command\",\"arguments\":"
        "{\"command-line\":\"info qtree\"}}\n"
        "S {\"return\":\"dev: x, id \\\"\\\"\\r\\n\"}\n"
        "C {\"execute\":\"query-memory-devices\"}\n"
        "S {\"return\":[{\"type\":\"dimm\",\"data\":{\"id\":\"d1\",\"addr\":"
        "4294967296,\"memdev\":\"/objects/m1\"}}]}\n",
        &q);

    (void)state;
    assert_int_equal(qmp_topology_read(q, &n, &err), 0);
    assert_int_equal(n.count, 2);
    assert_string_equal(n.items[1], "memory/dimm,d1@0x100000000 /objects/m1");
    qstill_qmp_close(q);
    qmp_peer_finish(p);
}

/* -------------------------------------------------------- what reset writes */

static void what_a_reset_writes_is_found_in_all_its_blocks(void **state)
{
    CLEANUP(qmp_ram_pieces_fini)
    struct qmp_ram_pieces p = QMP_RAM_PIECES_INIT;
    struct qmp_ram_block blocks[] = {
        {.name = (char *)"pc.ram", .used = 256 << 20, .total = 256 << 20},
        {.name = (char *)"pc.bios", .used = 256 << 10, .total = 256 << 10},
        {.name = (char *)"/rom@etc/acpi/tables",
         .used = 128 << 10,
         .total = 2 << 20},
    };
    struct qmp_ram ram = {3, blocks};
    struct qmp_ram_range ranges[] = {
        {0, 256 << 20, 0, (char *)"pc.ram", false},
        {0xfffc0000, 256 << 10, 0, (char *)"pc.bios", true},
    };
    struct qmp_ram_map map = {2, ranges};
    struct qmp_rom roms[] = {
        {(char *)"bios", (char *)"", 0xfffc0000, 256 << 10, true, true},
        {(char *)"shadow", (char *)"", 0xe0000, 100, true, true},
        {(char *)"blob", (char *)"", 0x12345678, 10, true, false},
        {(char *)"t", (char *)"/rom@etc/acpi/tables", 0, 128 << 10, false,
         false},
        {(char *)"end", (char *)"", UINT64_MAX - 1, 10, true, false},
    };
    struct qmp_roms list = {5, roms};

    (void)state;
    ranges[0].size = 1u << 30;
    blocks[0].used = blocks[0].total = 1u << 30;
    assert_int_equal(qmp_roms_locate(&list, &map, &ram, &p, &err), 0);
    assert_int_equal(p.count, 5);
    assert_string_equal(p.items[0].block, "pc.bios");
    assert_int_equal(p.items[0].offset, 0);
    assert_int_equal(p.items[0].length, 256 << 10);
    /* below 1 MiB: by the map, and as the RAM's own */
    assert_string_equal(p.items[1].block, "pc.ram");
    assert_int_equal(p.items[1].offset, 0xe0000);
    assert_int_equal(p.items[1].length, 4096);
    assert_int_equal(p.items[2].offset, 0xe0000);
    /* whole pages */
    assert_int_equal(p.items[3].offset, 0x12345000);
    assert_int_equal(p.items[3].length, 4096);
    assert_string_equal(p.items[4].block, "/rom@etc/acpi/tables");
    assert_int_equal(p.items[4].length, 128 << 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_device_is_a_line_with_bus_type_id_and_address),
        cmocka_unit_test(properties_count_but_not_the_present_drive),
        cmocka_unit_test(registers_of_the_firmware_counted_before),
        cmocka_unit_test(a_text_without_devices_is_an_error),
        cmocka_unit_test(hostile_trees_end_in_an_error),
        cmocka_unit_test(memory_devices_are_part_of_it),
        cmocka_unit_test(what_a_reset_writes_is_found_in_all_its_blocks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
