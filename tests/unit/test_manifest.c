/* SPDX-License-Identifier: MIT */
/* The store's JSON files: what is written is read back, damage is named. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/publish.h"
#include "engine/journal.h"
#include "engine/manifest.h"
#include "engine/store.h"
#include "engine/vmrecord.h"

struct fixture {
    char dir[64];
    int fd;
    struct qstill_error err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    snprintf(f->dir, sizeof(f->dir), "/tmp/qstill-test-XXXXXX");
    if (!mkdtemp(f->dir))
        return -1;
    f->fd = open(f->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *state = f;
    return f->fd < 0 ? -1 : 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    static const char *const names[] = {STORE_RECORD, STORE_MANIFEST,
                                        STORE_JOURNAL};

    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        unlinkat(f->fd, names[i], 0);
    close(f->fd);
    rmdir(f->dir);
    free(f);
    return 0;
}

static void put(struct fixture *f, const char *name, const char *text)
{
    assert_int_equal(publish_bytes(f->fd, name, text, strlen(text), &f->err),
                     0);
}

static char *labels[] = {(char *)"a=b", (char *)"purpose=test"};

static char *user_devices[] = {(char *)"virtio-blk-pci,vd0",
                               (char *)"virtio-rng-pci plugged"};

static struct medium media[] = {
    {"cd0", "", "/iso/\xff.iso", "raw"},
    {"/machine/unattached/device[21]", "fd", "", ""}};

static struct manifest_disk bases[] = {
    {.path = "/golden/\xff.qcow2",
     .format = "qcow2",
     .dev = 7,
     .ino = 98,
     .file_size = 1234,
     .mtime_ns = 1799999999123456788ull,
     .header_hash = "fedcba9876543210",
     .owner_vm = "web",
     .owner_snapshot = "k3pq7mzt2abc"},
    {.path = "/dev/vg/below", .format = ""},
};

static struct manifest_disk disks[] = {
    {.name = "vd0",
     .qdev = "/machine/peripheral/vd0/virtio-backend",
     .path = "/vm/a.qcow2",
     .format = "qcow2",
     .virtual_size = 1ull << 40,
     .dev = 7,
     .ino = 99,
     .file_size = 12345,
     .mtime_ns = 1799999999123456789ull,
     .header_hash = "0123456789abcdef",
     .bases = bases,
     .base_count = 2},
    /* a path that is no UTF-8 */
    {.name = "b", .device = "drive1", .path = "/vm/\xff\xc3x", .format = "raw"},
};

static struct manifest_block blocks[] = {
    {.id = "pc.ram",
     .size = 1ull << 31,
     .page_size = 4096,
     .main = true,
     .origin = "memory-backend-ram"},
    {.id = "/rom@etc/acpi/tables", .size = 131072, .shared = true},
};

static struct manifest full(void)
{
    return (struct manifest){
        .id = "abcdefgh2345",
        .name = "before-upgrade",
        .description = "with \"quotes\" and \n a line",
        .parent_id = "parent",
        .created_at = "2026-11-22T22:02:20Z",
        .created_ns = 1795384940123456789ull,
        .label_count = 2,
        .labels = labels,
        .quiesced = true,
        .frozen_ms = 12.5,
        .mode = "background",
        .mode_reason = "why",
        .run_state = "running",
        .pause_ms = 21.25,
        .stall_ms = 0.5,
        .disk_count = 2,
        .disks = disks,
        .memory_included = true,
        .machine = "pc-q35-7.2",
        .memory_bytes = 1ull << 31,
        .memory_written = 4096,
        .block_count = 2,
        .blocks = blocks,
        .user_device_count = 2,
        .user_devices = user_devices,
        .media = {2, media},
        .cpu_type = "max-x86_64-cpu",
        .accel = "tcg",
        .vcpus = 2,
        .qemu_version = "7.2.22",
        .qemu_sum = "xxh3:1",
        .host = {.cpu_model = "CPU", .tsc_khz = 2400000, .kernel = "6.1"},
    };
}

static void assert_text(const char *a, const char *b)
{
    if (!a || !b)
        assert_ptr_equal(a, b);
    else
        assert_string_equal(a, b);
}

static void a_manifest_is_read_back_as_it_was_written(void **state)
{
    struct fixture *f = *state;
    struct manifest m = full(), r;

    assert_int_equal(manifest_save(f->fd, &m, -1, &f->err), 0);
    assert_int_equal(manifest_load(f->fd, &r, &f->err), 0);
    assert_text(r.id, m.id);
    assert_text(r.name, m.name);
    assert_text(r.description, m.description);
    assert_text(r.parent_id, m.parent_id);
    assert_text(r.created_at, m.created_at);
    assert_int_equal(r.created_ns, m.created_ns);
    assert_text(r.mode, m.mode);
    assert_text(r.mode_reason, m.mode_reason);
    assert_text(r.run_state, m.run_state);
    assert_text(r.machine, m.machine);
    assert_text(r.cpu_type, m.cpu_type);
    assert_text(r.accel, m.accel);
    assert_text(r.qemu_version, m.qemu_version);
    assert_text(r.qemu_sum, m.qemu_sum);
    assert_text(r.host.cpu_model, m.host.cpu_model);
    assert_text(r.host.kernel, m.host.kernel);
    assert_null(r.host.microcode);
    assert_int_equal(r.host.tsc_khz, m.host.tsc_khz);
    assert_true(r.quiesced && r.memory_included);
    assert_true(r.frozen_ms == m.frozen_ms && r.pause_ms == m.pause_ms &&
                r.stall_ms == m.stall_ms);
    assert_int_equal(r.memory_bytes, m.memory_bytes);
    assert_int_equal(r.memory_written, m.memory_written);
    assert_int_equal(r.vcpus, 2);
    assert_int_equal(r.label_count, 2);
    assert_text(r.labels[1], "purpose=test");
    assert_int_equal(r.user_device_count, 2);
    assert_text(r.user_devices[1], "virtio-rng-pci plugged");
    assert_int_equal(r.media.count, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_text(r.media.items[i].qdev, media[i].qdev);
        assert_text(r.media.items[i].device, media[i].device);
        assert_text(r.media.items[i].path, media[i].path);
        assert_text(r.media.items[i].format, media[i].format);
    }
    manifest_fini(&r);
}

/* Nobody knows, and there are none, are two things; a rename keeps them so. */
static void what_it_does_not_tell_is_not_told_when_written_anew(void **state)
{
    struct fixture *f = *state;
    struct manifest m = full(), r;

    m.user_device_count = m.media.count = 0;
    for (int known = 0; known < 2; known++) {
        m.user_devices = known ? user_devices : NULL;
        m.media.items = known ? media : NULL;
        assert_int_equal(manifest_save(f->fd, &m, -1, &f->err), 0);
        assert_int_equal(manifest_load(f->fd, &r, &f->err), 0);
        assert_int_equal(r.user_devices != NULL, known);
        assert_int_equal(r.user_device_count, 0);
        assert_int_equal(r.media.items != NULL, known);
        assert_int_equal(r.media.count, 0);
        manifest_fini(&r);
    }
}

static void what_its_disks_stand_on_is_read_back(void **state)
{
    struct fixture *f = *state;
    struct manifest m = full(), r;

    assert_int_equal(manifest_save(f->fd, &m, -1, &f->err), 0);
    assert_int_equal(manifest_load(f->fd, &r, &f->err), 0);
    assert_int_equal(r.disks[0].base_count, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_text(r.disks[0].bases[i].path, bases[i].path);
        assert_text(r.disks[0].bases[i].format, bases[i].format);
        assert_text(r.disks[0].bases[i].header_hash, bases[i].header_hash);
        assert_text(r.disks[0].bases[i].owner_vm, bases[i].owner_vm);
        assert_text(r.disks[0].bases[i].owner_snapshot,
                    bases[i].owner_snapshot);
        assert_int_equal(r.disks[0].bases[i].dev, bases[i].dev);
        assert_int_equal(r.disks[0].bases[i].ino, bases[i].ino);
        assert_int_equal(r.disks[0].bases[i].file_size, bases[i].file_size);
        assert_int_equal(r.disks[0].bases[i].mtime_ns, bases[i].mtime_ns);
    }
    /* not kept is not the same as none */
    assert_null(r.disks[1].bases);
    manifest_fini(&r);
    m.disks[1].bases = bases;
    assert_int_equal(manifest_save(f->fd, &m, -1, &f->err), 0);
    m.disks[1].bases = NULL;
    assert_int_equal(manifest_load(f->fd, &r, &f->err), 0);
    assert_non_null(r.disks[1].bases);
    assert_int_equal(r.disks[1].base_count, 0);
    manifest_fini(&r);
}

static void its_disks_and_blocks_are_read_back_too(void **state)
{
    struct fixture *f = *state;
    struct manifest m = full(), r;

    assert_int_equal(manifest_save(f->fd, &m, -1, &f->err), 0);
    assert_int_equal(manifest_load(f->fd, &r, &f->err), 0);
    assert_int_equal(r.disk_count, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_text(r.disks[i].name, disks[i].name);
        assert_text(r.disks[i].qdev, disks[i].qdev);
        assert_text(r.disks[i].device, disks[i].device);
        assert_text(r.disks[i].path, disks[i].path);
        assert_text(r.disks[i].format, disks[i].format);
        assert_text(r.disks[i].header_hash, disks[i].header_hash);
        assert_int_equal(r.disks[i].virtual_size, disks[i].virtual_size);
        assert_int_equal(r.disks[i].dev, disks[i].dev);
        assert_int_equal(r.disks[i].ino, disks[i].ino);
        assert_int_equal(r.disks[i].file_size, disks[i].file_size);
        assert_int_equal(r.disks[i].mtime_ns, disks[i].mtime_ns);
    }
    assert_int_equal(r.block_count, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_text(r.blocks[i].id, blocks[i].id);
        assert_text(r.blocks[i].origin, blocks[i].origin);
        assert_int_equal(r.blocks[i].size, blocks[i].size);
        assert_int_equal(r.blocks[i].page_size, blocks[i].page_size);
        assert_int_equal(r.blocks[i].main, blocks[i].main);
        assert_int_equal(r.blocks[i].shared, blocks[i].shared);
    }
    manifest_fini(&r);
}

static void a_damaged_manifest_is_corrupt_and_named(void **state)
{
    static const struct {
        const char *text;
        int code;
        const char *message;
    } cases[] = {
        {"", QSTILL_E_CORRUPT, "manifest.json is damaged"},
        {"[1]", QSTILL_E_CORRUPT, "no JSON object"},
        {"{\"version\":1}", QSTILL_E_CORRUPT, "\"id\" is missing"},
        {"{\"version\":2}", QSTILL_E_PRECONDITION, "has version 2"},
        {"{\"version\":\"1\"}", QSTILL_E_CORRUPT, "no version"},
        {"{\"id\":\"x\"}", QSTILL_E_CORRUPT, "no version"},
        {"{\"version\":1,\"id\":7}", QSTILL_E_CORRUPT, "\"id\" is no string"},
        {"{\"version\":1,\"version\":1}", QSTILL_E_CORRUPT, "damaged"},
    };
    struct fixture *f = *state;
    struct manifest m;

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        memset(&f->err, 0, sizeof(f->err));
        put(f, STORE_MANIFEST, cases[i].text);
        assert_int_equal(manifest_load(f->fd, &m, &f->err), cases[i].code);
        assert_non_null(strstr(f->err.message, cases[i].message));
    }
}

static void a_negative_size_is_refused(void **state)
{
    struct fixture *f = *state;
    struct vm_record rec;

    put(f, STORE_RECORD,
        "{\"version\":1,\"name\":\"v\",\"qmp\":\"/q\",\"disks\":[{\"name\":"
        "\"a\",\"attachPath\":\"/a\",\"attachFormat\":\"raw\",\"headPath\":"
        "\"/a\",\"headFormat\":\"raw\",\"virtualSize\":-1}]}");
    assert_int_equal(vmrecord_load(f->fd, &rec, &f->err), QSTILL_E_CORRUPT);
    assert_non_null(strstr(f->err.message, "\"virtualSize\" is no size"));
}

static void a_record_keeps_heads_hidden_layers_and_the_launch(void **state)
{
    struct fixture *f = *state;
    char *argv[] = {(char *)"qemu", (char *)"-m", (char *)"64", NULL};
    char *env[] = {(char *)"PATH=/bin", NULL};
    struct launch_record launch = {.argv = argv,
                                   .cwd = (char *)"/",
                                   .env = env,
                                   .uid = 1,
                                   .gid = 2,
                                   .exe = (char *)"/bin/qemu"};
    struct vm_disk disk = {.name = "d",
                           .attach_path = "a",
                           .attach_format = "raw",
                           .head_path = "/a",
                           .head_format = "raw",
                           .virtual_size = 512};
    struct vm_record w = {
        .name = "v", .qmp = "/q", .disk_count = 1, .disks = &disk};
    struct vm_record r;

    assert_int_equal(vmrecord_set_head(&w, "d", "/b", "qcow2", &f->err), 0);
    assert_int_equal(vmrecord_hide(&w, "d", "/a", "raw", &f->err), 0);
    assert_int_equal(vmrecord_hide(&w, "d", "/a", "raw", &f->err), 0);
    assert_int_equal(vmrecord_set_launch(&w, &launch, &f->err), 0);
    assert_int_equal(vmrecord_save(f->fd, &w, &f->err), 0);
    arena_fini(&w.arena);
    assert_int_equal(vmrecord_load(f->fd, &r, &f->err), 0);
    assert_text(r.disks[0].head_path, "/b");
    assert_text(r.disks[0].head_format, "qcow2");
    assert_int_equal(r.hidden_count, 1);
    assert_text(r.hidden[0].path, "/a");
    assert_true(r.has_launch);
    assert_text(r.launch.argv[2], "64");
    assert_null(r.launch.argv[3]);
    assert_int_equal(r.launch.gid, 2);
    vmrecord_unhide(&r, "/a");
    assert_int_equal(r.hidden_count, 0);
    vmrecord_fini(&r);
}

/* What a layer was goes with it: into the list, out of it, and to no other. */
static void a_hidden_layer_is_what_it_was(void **state)
{
    struct fixture *f = *state;
    const struct vm_hidden known = {.disk = "d",
                                    .path = "/a",
                                    .format = "qcow2",
                                    .keep = true,
                                    .dev = 1,
                                    .ino = 2,
                                    .file_size = 3,
                                    .mtime_ns = 4,
                                    .header_hash = "5"};
    struct vm_record w = {.name = "v", .qmp = "/q"};
    struct vm_hidden copy;

    assert_int_equal(vmrecord_hide_as(&w, &known, &f->err), 0);
    assert_int_equal(w.hidden[0].ino, 2);
    assert_int_equal(w.hidden[0].mtime_ns, 4);
    assert_text(w.hidden[0].header_hash, "5");
    assert_int_equal(vmrecord_copy_layer(&w, &known, &copy, &f->err), 0);
    assert_int_equal(copy.file_size, 3);
    assert_ptr_not_equal(copy.path, known.path);
    vmrecord_unhide(&w, "/a");
    assert_int_equal(vmrecord_hide(&w, "d", "/b", "raw", &f->err), 0);
    assert_text(w.hidden[0].path, "/b");
    assert_int_equal(w.hidden[0].ino, 0);
    assert_int_equal(w.hidden[0].mtime_ns, 0);
    assert_false(w.hidden[0].keep);
    assert_null(w.hidden[0].header_hash);
    arena_fini(&w.arena);
}

/* 500 snapshots of 16 disks that are deleted at once. */
static void a_record_hides_the_layers_of_a_large_tree(void **state)
{
    struct fixture *f = *state;
    struct vm_disk disk = {.name = "d",
                           .attach_path = "a",
                           .attach_format = "raw",
                           .head_path = "/a",
                           .head_format = "raw"};
    struct vm_record w = {
        .name = "v", .qmp = "/q", .disk_count = 1, .disks = &disk};
    struct vm_record r;
    char path[64];

    for (int i = 0; i < 8000; i++) {
        snprintf(path, sizeof(path), "/var/lib/images/vm/disk.%d.qcow2", i);
        assert_int_equal(vmrecord_hide(&w, "d", path, "qcow2", &f->err), 0);
    }
    assert_int_equal(vmrecord_save(f->fd, &w, &f->err), 0);
    arena_fini(&w.arena);
    assert_int_equal(vmrecord_load(f->fd, &r, &f->err), 0);
    assert_int_equal(r.hidden_count, 8000);
    assert_text(r.hidden[7999].path, path);
    assert_int_equal(vmrecord_hide(&r, "d", "/more", "raw", &f->err), 0);
    assert_text(r.hidden[8000].path, "/more");
    assert_text(r.hidden[7999].path, path);
    vmrecord_fini(&r);
}

static void a_journal_keeps_its_phase_disks_and_pivot(void **state)
{
    struct fixture *f = *state;
    struct journal_disk d = {"d", "/o", "raw", "/n", "qcow2"};
    char *ids[] = {(char *)"one", (char *)"two"};
    struct journal w = {.op = JOURNAL_DELETE,
                        .phase = JOURNAL_COMMITTED,
                        .snapshot = "one",
                        .id_count = 2,
                        .ids = ids,
                        .was_running = true,
                        .disk_count = 1,
                        .disks = &d,
                        .pivot_disk = "d",
                        .pivot_to = "/o",
                        .pivot_live = true,
                        .rewriting = "/r"};
    struct journal r;

    assert_int_equal(journal_save(f->fd, &w, &f->err), 0);
    assert_true(journal_exists(f->fd));
    assert_int_equal(journal_load(f->fd, &r, &f->err), 0);
    assert_int_equal(r.op, JOURNAL_DELETE);
    assert_int_equal(r.phase, JOURNAL_COMMITTED);
    assert_true(r.was_running && !r.freezing);
    assert_int_equal(r.id_count, 2);
    assert_text(r.ids[1], "two");
    assert_text(r.disks[0].new_format, "qcow2");
    assert_text(r.pivot_to, "/o");
    assert_null(r.pivot_from);
    assert_true(r.pivot_live);
    journal_forget_pivot(&r);
    assert_null(r.pivot_to);
    assert_false(r.pivot_live);
    assert_text(r.rewriting, "/r");
    journal_fini(&r);
    assert_int_equal(journal_remove(f->fd, &f->err), 0);
    assert_false(journal_exists(f->fd));
    assert_int_equal(journal_load(f->fd, &r, &f->err), QSTILL_E_NOT_FOUND);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_manifest_is_read_back_as_it_was_written),
        T(what_it_does_not_tell_is_not_told_when_written_anew),
        T(what_its_disks_stand_on_is_read_back),
        T(its_disks_and_blocks_are_read_back_too),
        T(a_damaged_manifest_is_corrupt_and_named),
        T(a_negative_size_is_refused),
        T(a_record_keeps_heads_hidden_layers_and_the_launch),
        T(a_hidden_layer_is_what_it_was),
        T(a_record_hides_the_layers_of_a_large_tree),
        T(a_journal_keeps_its_phase_disks_and_pivot),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
