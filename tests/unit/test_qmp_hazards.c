/* SPDX-License-Identifier: MIT */
/* Devices that a memory capture must know of, found in QEMU's texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

#include "qmp/hazards.h"

#define PLAIN                                                                  \
    "bus: main-system-bus\r\n  type System\r\n"                                \
    "  dev: hpet, id \"\"\r\n    timers = 3 (0x3)\r\n"                         \
    "      dev: virtio-net-pci, id \"vhost-user-net\"\r\n"                     \
    "        netdev = \"vfio-pci\"\r\n"                                        \
    "        free-page-reporting = false\r\n"

static void an_ordinary_vm_has_none(void **state)
{
    struct qmp_hazards h;

    (void)state;
    qmp_hazards_parse(PLAIN,
                      "n0: index=0,type=tap,ifname=tap0,vhost=on\r\n"
                      " \\ nic: index=0,type=nic,model=virtio-net-pci\r\n",
                      &h);
    assert_string_equal(h.vfio, "");
    assert_string_equal(h.vhost, "");
    assert_string_equal(h.ivshmem, "");
    assert_string_equal(h.virtio_mem, "");
    assert_string_equal(h.virtio_pmem, "");
    assert_string_equal(h.balloon, "");
    assert_false(h.balloon_reports);
}

static void each_kind_is_found_with_its_id(void **state)
{
    struct qmp_hazards h;

    (void)state;
    qmp_hazards_parse(PLAIN "  dev: vfio-pci-nohotplug, id \"gpu\"\r\n"
                            "  dev: vhost-user-fs-pci, id \"\"\r\n"
                            "  dev: vhost-user-blk-pci, id \"second\"\r\n"
                            "  dev: ivshmem-doorbell, id \"iv\"\r\n"
                            "  dev: virtio-mem-pci, id \"vm0\"\r\n"
                            "  dev: virtio-pmem-pci, id \"pm0\"\r\n"
                            "    dev: virtio-balloon-pci, id \"b\"\r\n"
                            "      free-page-reporting = true\r\n",
                      "", &h);
    assert_string_equal(h.vfio, "vfio-pci-nohotplug 'gpu'");
    assert_string_equal(h.vhost, "vhost-user-fs-pci");
    assert_string_equal(h.ivshmem, "ivshmem-doorbell 'iv'");
    assert_string_equal(h.virtio_mem, "virtio-mem-pci 'vm0'");
    assert_string_equal(h.virtio_pmem, "virtio-pmem-pci 'pm0'");
    assert_string_equal(h.balloon, "virtio-balloon-pci 'b'");
    assert_true(h.balloon_reports);
}

static void a_backend_in_another_process_is_found(void **state)
{
    struct qmp_hazards h;

    (void)state;
    qmp_hazards_parse(PLAIN,
                      "nic: index=0,type=nic,model=virtio-net-pci\r\n"
                      " \\ n0: index=0,type=vhost-vdpa,vhostdev=/dev/x\r\n",
                      &h);
    assert_string_equal(h.vhost, "a netdev (vhost-vdpa)");
    qmp_hazards_parse(PLAIN, "n0: index=0,type=vhost-user,chardev", &h);
    assert_string_equal(h.vhost, "a netdev (vhost-user)");
    qmp_hazards_parse(
        PLAIN, "p0: index=0,type=passt,vhost-user,connected to pid 7\r\n", &h);
    assert_string_equal(h.vhost, "a netdev (passt by vhost-user)");
    qmp_hazards_parse(PLAIN, "p0: index=0,type=passt,vhost-user", &h);
    assert_string_equal(h.vhost, "a netdev (passt by vhost-user)");
    /* without: its packets go through QEMU */
    qmp_hazards_parse(PLAIN,
                      "a,vhost-user: index=0,type=passt,stream,connected to "
                      "pid 7\r\n",
                      &h);
    assert_string_equal(h.vhost, "");
}

static void texts_that_are_cut_or_endless_are_no_harm(void **state)
{
    char line[400] = "dev: vfio-";
    struct qmp_hazards h;

    (void)state;
    for (size_t i = strlen(line); i < sizeof(line) - 1; i++)
        line[i] = 'x';
    qmp_hazards_parse(line, "", &h);
    assert_int_equal(strlen(h.vfio), QMP_HAZARD_SIZE - 1);
    qmp_hazards_parse("dev: virtio-mem, id \"", "type=vhost-", &h);
    assert_string_equal(h.virtio_mem, "virtio-mem");
    assert_string_equal(h.vhost, "a netdev (vhost-)");
    qmp_hazards_parse("dev: ", "\\ \\", &h);
    assert_string_equal(h.vhost, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_ordinary_vm_has_none),
        cmocka_unit_test(each_kind_is_found_with_its_id),
        cmocka_unit_test(a_backend_in_another_process_is_found),
        cmocka_unit_test(texts_that_are_cut_or_endless_are_no_harm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
