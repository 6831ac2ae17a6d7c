/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/launch.h"

static struct launch_record record(const char *const *argv)
{
    static char *env[] = {NULL};
    struct launch_record rec = {
        .argv = (char **)argv,
        .cwd = (char *)"/",
        .env = env,
        .exe = (char *)"/bin/sh",
    };

    return rec;
}

static const struct {
    const char *in[4];
    enum launch_weight weight;
    const char *code, *says;
} one_hinder[] = {
    {{"-netdev", "tap,id=n,fd=7"},
     LAUNCH_BLOCKER,
     "inherited-fd",
     "-netdev tap,id=n,fd=7 uses a file that only the process that started "
     "QEMU had open"},
    {{"-netdev", "tap,id=n,ifname=t,vhostfds=3:4"},
     LAUNCH_BLOCKER,
     "inherited-fd",
     "-netdev tap,id=n,ifname=t,vhostfds=3:4 uses a file that only the process "
     "that started QEMU had open"},
    {{"-netdev", "{\"type\":\"tap\",\"id\":\"n\",\"fd\":\"7\"}"},
     LAUNCH_BLOCKER,
     "inherited-fd",
     "-netdev {\"type\":\"tap\",\"id\":\"n\",\"fd\":\"7\"} uses a file that "
     "only the process that started QEMU had open"},
    {{"-netdev", "stream,id=n,addr.type=fd,addr.str=7"},
     LAUNCH_BLOCKER,
     "inherited-fd",
     "-netdev stream,id=n,addr.type=fd,addr.str=7 uses a file that only the "
     "process that started QEMU had open"},
    {{"-chardev", "socket,id=c,fd=9,server=on"},
     LAUNCH_BLOCKER,
     "inherited-fd",
     "-chardev socket,id=c,fd=9,server=on uses a file that only the process "
     "that started QEMU had open"},
    {{"--add-fd", "fd=3,set=1"},
     LAUNCH_BLOCKER,
     "inherited-fd",
     "-add-fd fd=3,set=1 passes a file that only the process that started QEMU "
     "had open"},
    {{"-drive", "file=/dev/fdset/1,format=raw"},
     LAUNCH_BLOCKER,
     "inherited-fd",
     "-drive file=/dev/fdset/1,format=raw uses a file that only the process "
     "that started QEMU had open"},
    {{"-bios", "/proc/self/fd/4"},
     LAUNCH_BLOCKER,
     "inherited-fd",
     "-bios /proc/self/fd/4 uses a file that only the process that started "
     "QEMU had open"},
    {{"-chroot", "/x"},
     LAUNCH_BLOCKER,
     "chroot",
     "-chroot /x changes the root directory, where the recorded paths mean "
     "others"},
    {{"-run-with", "chroot=/x"},
     LAUNCH_BLOCKER,
     "chroot",
     "-run-with chroot= changes the root directory, where the recorded paths "
     "mean others"},
    {{"-snapshot"},
     LAUNCH_BLOCKER,
     "snapshot-mode",
     "-snapshot sends all writes to temporary files, which die with QEMU"},
    {{"-kernel", "no/such/vmlinuz"},
     LAUNCH_BLOCKER,
     "file-missing",
     "-kernel: /no/such/vmlinuz is gone"},
    {{"-display", "curses"},
     LAUNCH_BLOCKER,
     "terminal",
     "-display curses needs a terminal"},
    {{"-serial", "mon:stdio"},
     LAUNCH_NOTE,
     "stdio-to-log",
     "-serial mon:stdio used the terminal; after a start by qstill the output "
     "goes to the log and there is no input"},
    {{"-chardev", "stdio,id=c"},
     LAUNCH_NOTE,
     "stdio-to-log",
     "-chardev stdio,id=c used the terminal; after a start by qstill the "
     "output goes to the log and there is no input"},
    {{"-nographic"},
     LAUNCH_NOTE,
     "stdio-to-log",
     "-nographic used the terminal; after a start by qstill the output goes to "
     "the log"},
    {{"-tpmdev", "emulator,id=t,chardev=c"},
     LAUNCH_NOTE,
     "helper-process",
     "-tpmdev emulator,id=t,chardev=c needs its own process, which qstill does "
     "not start"},
    {{"-tpmdev", "emulator,\n\033[2J"},
     LAUNCH_NOTE,
     "helper-process",
     "-tpmdev emulator,??[2J needs its own process, which qstill does not "
     "start"},
    {{"-loadvm", "s1"},
     LAUNCH_NOTE,
     "loadvm",
     "-loadvm s1 is left out when the VM is started again: its disks are "
     "newer"},
    {{"-readconfig", "/bin/sh"},
     LAUNCH_NOTE,
     "readconfig",
     "-readconfig /bin/sh is read again at the next start, as the file is "
     "then"},
    {{"-runas", "nobody"},
     LAUNCH_NOTE,
     "user-changed",
     "-runas nobody is left out: QEMU is started as that user from the "
     "beginning, and may then lack what only root can open (taps, "
     "/dev/vhost-net)"},
};

static void each_hinder_has_its_code_and_says_what_it_is(void **state)
{
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(one_hinder) / sizeof(one_hinder[0]); i++) {
        const char *argv[] = {"q", one_hinder[i].in[0], one_hinder[i].in[1],
                              NULL};
        struct launch_record rec = record(argv);
        struct launch_hinder_list list = {0};
        struct qstill_error err = {0};

        assert_int_equal(launch_hinders(&rec, NULL, 0, 0, &list, &err), 0);
        if (list.count != 1)
            fail_msg("%s: %zu hinders", one_hinder[i].says, list.count);
        assert_string_equal(list.items[0].code, one_hinder[i].code);
        assert_string_equal(list.items[0].message, one_hinder[i].says);
        assert_int_equal(list.items[0].weight, one_hinder[i].weight);
        assert_true(*list.items[0].hint);
        launch_hinder_list_fini(&list);
    }
}

/* %s is the file. */
static const char *const readers[][2] = {
    {"-machine", "q35,kernel=%s"},
    {"-M", "pc,initrd=%s"},
    {"-machine", "firmware=%s"},
    {"-bios", "%s"},
    {"-initrd", "%s"},
    {"-device", "virtio-net-pci,romfile=%s"},
    {"-device", "{\"driver\":\"e1000\",\"romfile\":\"%s\"}"},
    {"-device", "loader,file=%s,addr=0"},
    {"-global", "virtio-net-pci.romfile=%s"},
    {"-global", "driver=e1000,property=romfile,value=%s"},
    {"-option-rom", "%s"},
    {"-fw_cfg", "opt/x,file=%s"},
    {"-smbios", "file=%s"},
    {"-acpitable", "sig=OEM1,data=/bin/sh:%s"},
    {"-object", "secret,id=s,file=%s"},
    {"-object", "{\"qom-type\":\"rng-random\",\"filename\":\"%s\"}"},
    {"-netdev", "tap,id=n,script=%s,downscript=no"},
    {"-chardev", "serial,id=c,path=%s"},
    {"-chardev", "pipe,id=c,path=%s"},
    {"-serial", "pipe:%s"},
    {"-serial", "mon:unix:%s,server=off"},
    {"-vnc", "unix:%s,reverse=on"},
    {"-chardev", "socket,id=c,path=%s,reconnect=0"},
    {"-cdrom", "%s"},
    {"-drive", "file=file:%s,media=cdrom"},
    {"-drive", "driver=qcow2,file.driver=file,file.filename=%s"},
    {"-drive", "file=json:{\"driver\":\"raw\",,\"file\":{\"driver\":\"file\",,"
               "\"filename\":\"%s\"}},if=none"},
    {"-blockdev", "raw,node-name=n,read-only=on,file.driver=file,"
                  "file.filename=%s"},
    {"-blockdev", "{\"driver\":\"file\",\"node-name\":\"n\",\"filename\":"
                  "\"%s\"}"},
};

static void each_file_that_a_start_reads_is_looked_at(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(readers) / sizeof(readers[0]); i++)
        for (int there = 0; there < 2; there++) {
            const char *path = there ? "/bin/true" : "/no/such/file";
            const char *at = strstr(readers[i][1], "%s");
            char value[256];
            const char *argv[] = {"q", readers[i][0], value, NULL};
            struct launch_record rec = record(argv);
            struct launch_hinder_list list = {0};
            struct qstill_error err = {0};

            snprintf(value, sizeof(value), "%.*s%s%s",
                     (int)(at - readers[i][1]), readers[i][1], path, at + 2);
            assert_int_equal(launch_hinders(&rec, NULL, 0, 0, &list, &err), 0);
            if (list.count != (there ? 0 : 1)) {
                fail_msg("%s: %zu hinders", value, list.count);
            } else if (!there) {
                assert_string_equal(list.items[0].code, "file-missing");
                assert_non_null(
                    strstr(list.items[0].message, "/no/such/file is gone"));
            }
            launch_hinder_list_fini(&list);
        }
}

/* %s is the file; its directory is there or not. */
static const char *const makers[][2] = {
    {"-pidfile", "%s"},
    {"-D", "%s"},
    {"-chardev", "file,id=c,path=%s"},
    {"-chardev", "socket,id=c,path=%s,server=on,wait=off"},
    {"-chardev", "null,id=c,logfile=%s"},
    {"-serial", "unix:%s,server,nowait"},
    {"-qmp", "unix:%s,server=on,wait=off"},
    {"-serial", "file:%s"},
    {"-vnc", "unix:%s"},
    {"-object", "filter-dump,id=f,netdev=n,file=%s"},
    {"-serial", "mon:unix:%s,wait=off,server=on"},
    {"-spice", "disable-ticketing=on,unix=on,addr=%s"},
    {"-netdev", "stream,id=n,server=on,addr.type=unix,addr.path=%s"},
    {"-netdev", "{\"type\":\"stream\",\"id\":\"n\",\"server\":true,"
                "\"addr\":{\"type\":\"unix\",\"path\":\"%s\"}}"},
    {"-netdev", "dgram,id=n,local.type=unix,local.path=%s,remote.type=unix,"
                "remote.path=/r"},
};

static void each_file_that_a_start_makes_is_looked_at(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(makers) / sizeof(makers[0]); i++)
        for (int there = 0; there < 2; there++) {
            const char *path = there ? "/tmp/not-there" : "/no/such/file";
            const char *at = strstr(makers[i][1], "%s");
            char value[256];
            const char *argv[] = {"q", makers[i][0], value, NULL};
            struct launch_record rec = record(argv);
            struct launch_hinder_list list = {0};
            struct qstill_error err = {0};

            snprintf(value, sizeof(value), "%.*s%s%s", (int)(at - makers[i][1]),
                     makers[i][1], path, at + 2);
            assert_int_equal(launch_hinders(&rec, NULL, 0, 0, &list, &err), 0);
            if (list.count != (there ? 0 : 1))
                fail_msg("%s: %zu hinders", value, list.count);
            if (!there) {
                assert_string_equal(list.items[0].code, "file-missing");
                assert_non_null(
                    strstr(list.items[0].message, "its directory is gone"));
            }
            launch_hinder_list_fini(&list);
        }
}

static void what_can_be_started_again_has_no_hinder(void **state)
{
    static const char *const argv[] = {"q",
                                       "-daemonize",
                                       "-pidfile",
                                       "/run/x.pid",
                                       "-sandbox",
                                       "on,spawn=deny",
                                       "-append",
                                       "root=/dev/fd/0 fd=3",
                                       "-incoming",
                                       "fd:3",
                                       "-name",
                                       "fd=1",
                                       "-netdev",
                                       "tap,id=n,ifname=t0",
                                       "-serial",
                                       "file:/tmp/stdio",
                                       "-qmp",
                                       "unix:/q,server=on,wait=off",
                                       "-serial",
                                       "unix:/no/such,reconnect=5",
                                       "-serial",
                                       "unix:/no/such,reconnect-ms=5",
                                       "-netdev",
                                       "tap,id=u,script=no,downscript=/no/such",
                                       "-netdev",
                                       "stream,id=v,addr.type=unix,"
                                       "addr.path=/no/such",
                                       "-spice",
                                       "addr=/no/such,port=1",
                                       "-S",
                                       "-drive",
                                       "if=none,id=d,file=/d.img,format=raw",
                                       "-kernel",
                                       "/bin/sh",
                                       NULL};
    struct launch_record rec = record(argv);
    struct launch_disk disk = {"d", "/d.img", "raw", NULL, NULL};
    struct launch_hinder_list list = {0};
    struct qstill_error err = {0};

    (void)state;
    assert_int_equal(launch_hinders(&rec, &disk, 1, 0, &list, &err), 0);
    if (list.count)
        fail_msg("%s", list.items[0].message);
    launch_hinder_list_fini(&list);
}

static void disks_that_cannot_be_replaced_are_told(void **state)
{
    static const char *const argv[] = {"q",
                                       "-hda",
                                       "/twice",
                                       "-hdb",
                                       "/twice",
                                       "-drive",
                                       "file=/off,format=raw,offset=512",
                                       "-hdc",
                                       "no/such",
                                       NULL};
    static const char *const codes[] = {
        "disk-not-in-argv",
        "disk-ambiguous",
        "disk-option",
        "cwd-missing",
    };
    static const char *const says[] = {
        "disk a: the command line of QEMU names /plugged nowhere",
        "disk b: the command line of QEMU names /twice more than once",
        "disk c: the command line of QEMU gives an offset into the file for "
        "/off, which a new image cannot take over",
        "disk d: no/such does not exist in /, where QEMU is now",
    };
    struct launch_record rec = record(argv);
    struct launch_disk disks[] = {
        {"a", "/plugged", "raw", NULL, NULL},
        {"b", "/twice", "raw", "/h/1", "qcow2"},
        {"c", "/off", "raw", NULL, NULL},
        {"d", "no/such", "raw", NULL, NULL},
    };
    struct launch_hinder_list list = {0};
    struct qstill_error err = {0};
    size_t i;

    (void)state;
    assert_int_equal(launch_hinders(&rec, disks, 4, 0, &list, &err), 0);
    assert_int_equal(list.count, 4);
    for (i = 0; i < 4; i++) {
        assert_string_equal(list.items[i].code, codes[i]);
        assert_string_equal(list.items[i].message, says[i]);
        assert_int_equal(list.items[i].weight, LAUNCH_BLOCKER);
        assert_true(*list.items[i].hint);
    }
    launch_hinder_list_fini(&list);
}

static void a_missing_binary_and_directory_are_told(void **state)
{
    static const char *const argv[] = {"q", NULL};
    struct launch_record rec = record(argv);
    struct launch_hinder_list list = {0};
    struct qstill_error err = {0};

    (void)state;
    rec.exe = (char *)"/no/such/qemu";
    rec.cwd = (char *)"/no/such/dir";
    assert_int_equal(launch_hinders(&rec, NULL, 0, 0, &list, &err), 0);
    assert_int_equal(list.count, 2);
    assert_string_equal(list.items[0].code, "binary-missing");
    assert_string_equal(list.items[0].message,
                        "the QEMU binary /no/such/qemu is gone or cannot be "
                        "run");
    assert_string_equal(list.items[1].code, "cwd-missing");
    assert_string_equal(list.items[1].message,
                        "the working directory /no/such/dir of QEMU is gone");
    launch_hinder_list_fini(&list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_hinder_has_its_code_and_says_what_it_is),
        cmocka_unit_test(each_file_that_a_start_reads_is_looked_at),
        cmocka_unit_test(each_file_that_a_start_makes_is_looked_at),
        cmocka_unit_test(what_can_be_started_again_has_no_hinder),
        cmocka_unit_test(disks_that_cannot_be_replaced_are_told),
        cmocka_unit_test(a_missing_binary_and_directory_are_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
