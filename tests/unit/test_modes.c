/* SPDX-License-Identifier: MIT */
/* QEMU's own texts, of 7.2 to 11.1. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/modes.h"

static void what_is_in_the_device_state_may_pass(void **state)
{
    static const char *const texts[] = {
        "State blocked by non-migratable CPU device (invtsc flag)",
        "'hv-passthrough' CPU flag prevents migration, use explicit set of "
        "hv-* flags instead",
        "'hv-no-nonarch-coresharing=auto' CPU flag prevents migration, use "
        "explicit 'hv-no-nonarch-coresharing=on' instead (but make sure SMT is "
        "disabled and/or vCPU pinning is properly done)",
        "The vdi format used by node '#block123' does not support live "
        "migration",
        "The vvfat (rw) format used by node 'x' does not support live "
        "migration",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
        assert_true(modes_blocker_is_harmless(texts[i]));
}

static void all_else_may_not(void **state)
{
    static const char *const texts[] = {
        "Migration is disabled when VirtFS export path '/srv' is mounted in "
        "the guest using mount_tag 'hv- CPU flag'",
        "virgl is not yet migratable",
        "x-pci-proxy-dev does not support migration",
        "SEV: Migration is not implemented",
        "Migration is disabled when using feature 'peer mode' in device "
        "'ivshmem'",
        "Migration disabled: TPM emulator does not support migration",
        "vhost-scsi does not support migration",
        "disable migration while dump in progress",
        "non-migratable device: 0000:00:03.0/usb-serial",
        "something that a later QEMU has",
        "",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
        assert_false(modes_blocker_is_harmless(texts[i]));
}

static void what_hinders_for_good(void **state)
{
    struct mode_report r = {.refused = "non-migratable device: x"};
    struct mode_report some = {.passing = false};

    (void)state;
    assert_true(modes_is_for_good(&r));
    r.passing = true;
    assert_false(modes_is_for_good(&r));
    for (unsigned m = 0; m < MODE_COUNT; m++) {
        assert_false(modes_is_for_good(&some));
        some.reason[m][0] = 'x';
        some.of_vm[m] = true;
    }
    assert_true(modes_is_for_good(&some));
    some.of_vm[MODE_PAUSED] = false; /* for want of a right */
    assert_false(modes_is_for_good(&some));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_in_the_device_state_may_pass),
        cmocka_unit_test(all_else_may_not),
        cmocka_unit_test(what_hinders_for_good),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
