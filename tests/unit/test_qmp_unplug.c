/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/qmp_peer.h"
#include "base/cleanup.h"
#include "qmp/unplug.h"

static struct qstill_error err;

#define HMP(line, text)                                                        \
    "C {\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\"" \
    ":\"" line "\"}}\n"                                                        \
    "S {\"return\":\"" text "\"}\n"
#define BASE                                                                   \
    "C {\"execute\":\"qom-get\",\"arguments\":{\"path\":"                      \
    "\"/machine/acpi-device\",\"property\":\"acpi-pcihp-io-base\"}}\n"
#define BUS(name) "bus: " name "\\r\\n  type PCI\\r\\n"
#define DEV(type, addr)                                                        \
    "  dev: " type ", id \\\"x\\\"\\r\\n    addr = " addr "\\r\\n"
#define FOUND(tree)      BASE "S {\"return\":44544}\n" HMP("info qtree", tree)
#define IN(port, value)  HMP("i /w " port, "portl[" port "] = " value "\\r\\n")
#define OUT(port, value) HMP("o /w " port " " value, "")

/* What the check says of a guest that runs or stands. */
static int check(const char *script, bool stands)
{
    CLEANUP(qmp_unplug_fini) struct qmp_unplug u = QMP_UNPLUG_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(script, &q);
    int rc;

    err = (struct qstill_error){0};
    assert_int_equal(qmp_unplug_find(q, &u, &err), 0);
    rc = qmp_unplug_check(q, &u, stands, &err);
    qmp_peer_close(p, q);
    return rc;
}

static void of_a_guest_that_runs_only_the_selected_bus_is_read(void **state)
{
    (void)state;
    assert_int_equal(check(FOUND(BUS("pci.0") DEV("a", "02.0") BUS("b"))
                               IN("0xae04", "0x00000000"),
                           false),
                     0);
    qmp_peer_error(
        &err,
        check(FOUND(BUS("pci.0") DEV("rng", "02.0") DEV("blk", "03.0") BUS("b"))
                  IN("0xae04", "0x00000008"),
              false),
        QSTILL_E_PRECONDITION, "pci.0/blk,x is unplugged");
}

static void of_one_that_stands_all_are_and_the_selected_one_is_again(void **st)
{
    (void)st;
    qmp_peer_error(
        &err,
        check(FOUND(BUS("pci.0") DEV("a", "02.0") BUS("b") DEV("c", "02.0")
                        BUS("d")) IN("0xae04", "0x00000000")
                  IN("0xae10", "0x00000002") OUT("0xae10", "0x0")
                      IN("0xae04", "0x00000000") OUT("0xae10", "0x1")
                          IN("0xae04", "0x00000004") OUT("0xae10", "0x2"),
              true),
        QSTILL_E_PRECONDITION, "device pci.0/a,x or b/c,x is unplugged");
}

static void a_bus_that_is_the_only_one_is_not_selected(void **state)
{
    (void)state;
    assert_int_equal(check(FOUND(BUS("pci.0") DEV("a", "02.0"))
                               IN("0xae04", "0x00000000")
                                   IN("0xae10", "0x00000000"),
                           true),
                     0);
}

static void a_slot_without_a_known_device_is_told_by_its_number(void **state)
{
    (void)state;
    qmp_peer_error(&err,
                   check(FOUND(BUS("pci.0") DEV("a", "02.0"))
                             IN("0xae04", "0x80000000"),
                         false),
                   QSTILL_E_PRECONDITION, "PCI slot 0x1f");
}

static void a_machine_without_such_registers_has_none(void **state)
{
    (void)state;
    assert_int_equal(check(BASE "S {\"error\":{\"class\":\"GenericError\","
                                "\"desc\":\"Property not found\"}}\n"
                                "C {\"execute\":\"qom-list\",\"arguments\":"
                                "{\"path\":\"/machine/acpi-device\"}}\n"
                                "S {\"return\":[]}\n",
                           true),
                     0);
}

static void a_monitor_that_does_not_read_ports_says_nothing(void **state)
{
    (void)state;
    assert_int_equal(check(FOUND(BUS("pci.0") DEV("a", "02.0"))
                               HMP("i /w 0xae04", "unknown command: 'i'\\r\\n"),
                           true),
                     0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_a_guest_that_runs_only_the_selected_bus_is_read),
        cmocka_unit_test(
            of_one_that_stands_all_are_and_the_selected_one_is_again),
        cmocka_unit_test(a_bus_that_is_the_only_one_is_not_selected),
        cmocka_unit_test(a_slot_without_a_known_device_is_told_by_its_number),
        cmocka_unit_test(a_machine_without_such_registers_has_none),
        cmocka_unit_test(a_monitor_that_does_not_read_ports_says_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
