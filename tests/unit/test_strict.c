/* SPDX-License-Identifier: MIT */
/* manifest.json and vm.json that were damaged or changed: no bit of them can be
 * another one without being found, and what earlier versions wrote is read. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/buf.h"
#include "base/file.h"
#include "engine/manifest.h"
#include "engine/store.h"
#include "engine/vmrecord.h"

#define FLIPS    4000
#define TEXT_MAX 65536
#define LAST     "fixtures/store/20261126/"

struct fixture {
    char dir[64];
    int fd;     /* of the VM, and of its snapshots */
    int snapfd; /* of one */
    struct manifest m;
    struct vm_record rec;
    struct qstill_error err;
};

static void put(struct fixture *f, const char *name, const char *text,
                size_t len)
{
    bool record = strcmp(name, STORE_RECORD) == 0;
    int fd = openat(record ? f->fd : f->snapfd, name,
                    O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, len), len);
    /* O_TRUNC would have ext4 wait for the disk */
    assert_int_equal(ftruncate(fd, (off_t)len), 0);
    close(fd);
}

static void get(struct fixture *f, const char *name, struct buf *text)
{
    bool record = strcmp(name, STORE_RECORD) == 0;

    text->len = 0;
    assert_int_equal(
        file_slurpat(record ? f->fd : f->snapfd, name, TEXT_MAX, text, &f->err),
        0);
    assert_int_equal(buf_reserve(text, 1), 0);
    text->data[text->len] = '\0';
}

static int load(struct fixture *f, const char *name)
{
    memset(&f->err, 0, sizeof(f->err));
    if (strcmp(name, STORE_RECORD) == 0) {
        vmrecord_fini(&f->rec);
        return vmrecord_load(f->fd, &f->rec, &f->err);
    }
    manifest_fini(&f->m);
    return manifest_load(f->snapfd, &f->m, &f->err);
}

static int check_sum(struct fixture *f, const char *name)
{
    memset(&f->err, 0, sizeof(f->err));
    return strcmp(name, STORE_RECORD) == 0
               ? vmrecord_check_sum(f->fd, &f->err)
               : manifest_check_sum(f->fd, &f->m, &f->err);
}

static void save(struct fixture *f, const char *name)
{
    int r = strcmp(name, STORE_RECORD) == 0
                ? vmrecord_save(f->fd, &f->rec, &f->err)
                : manifest_save(f->snapfd, &f->m, -1, &f->err);

    assert_int_equal(r, 0);
}

static void put_fixture(struct fixture *f, const char *from, const char *name)
{
    CLEANUP(buf_fini) struct buf text = BUF_INIT;
    char path[128];

    snprintf(path, sizeof(path), "%s%s", from, name);
    assert_int_equal(file_slurpat(AT_FDCWD, path, TEXT_MAX, &text, &f->err), 0);
    put(f, name, (const char *)text.data, text.len);
}

/* What this version writes of it. */
static void put_anew(struct fixture *f, const char *name)
{
    put_fixture(f, LAST, name);
    assert_int_equal(load(f, name), 0);
    save(f, name);
}

static void put_json(struct fixture *f, const char *name, const json_t *root)
{
    char *text = json_dumps(root, JSON_INDENT(2));

    assert_non_null(text);
    put(f, name, text, strlen(text));
    free(text);
}

static json_t *json_of(struct fixture *f, const char *name)
{
    CLEANUP(buf_fini) struct buf text = BUF_INIT;
    json_t *root;

    get(f, name, &text);
    root = json_loadb((const char *)text.data, text.len, 0, NULL);
    assert_non_null(root);
    return root;
}

/* The text with one part of it in the place of another. */
static void edit(struct fixture *f, const char *name, const char *from,
                 const char *to)
{
    CLEANUP(buf_fini) struct buf text = BUF_INIT, new = BUF_INIT;
    const char *at, *s;

    get(f, name, &text);
    s = (const char *)text.data;
    at = strstr(s, from);
    assert_non_null(at);
    assert_int_equal(buf_append(&new, s, (size_t)(at - s)), 0);
    assert_int_equal(buf_puts(&new, to), 0);
    assert_int_equal(buf_puts(&new, at + strlen(from)), 0);
    put(f, name, (const char *)new.data, new.len);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    snprintf(f->dir, sizeof(f->dir), "/tmp/qstill-test-XXXXXX");
    if (!mkdtemp(f->dir))
        return -1;
    f->fd = open(f->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* the id of the fixtures' snapshot */
    if (mkdirat(f->fd, "api48cdicrse", 0700) < 0)
        return -1;
    f->snapfd = openat(f->fd, "api48cdicrse", O_RDONLY | O_CLOEXEC);
    *state = f;
    return f->snapfd < 0 ? -1 : 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    manifest_fini(&f->m);
    vmrecord_fini(&f->rec);
    unlinkat(f->snapfd, STORE_MANIFEST, 0);
    unlinkat(f->snapfd, STORE_MEMORY, AT_REMOVEDIR);
    unlinkat(f->fd, STORE_RECORD, 0);
    unlinkat(f->fd, "api48cdicrse", AT_REMOVEDIR);
    close(f->snapfd);
    close(f->fd);
    rmdir(f->dir);
    free(f);
    return 0;
}

static const char *const files[] = {STORE_MANIFEST, STORE_RECORD};

/* -------------------------------------------------------------------- reads */

static void what_earlier_versions_wrote_is_read(void **state)
{
    static const char *const from[] = {"fixtures/store/20261122/", LAST};
    struct fixture *f = *state;

    for (size_t i = 0; i < ARRAY_LEN(from); i++) {
        for (size_t k = 0; k < ARRAY_LEN(files); k++) {
            put_fixture(f, from[i], files[k]);
            if (load(f, files[k]) < 0)
                fail_msg("%s%s: %s", from[i], files[k], f->err.message);
        }
        assert_true(f->m.memory_included);
        assert_int_equal(f->m.block_count, 6);
        assert_int_equal(f->m.disks[0].virtual_size, 2097152);
        assert_int_equal(f->m.device_count, i == 0 ? 0 : 34);
        assert_string_equal(f->rec.disks[0].name, "disk0-dev");
        assert_string_equal(f->rec.launch.cwd, "/srv/vm");
        assert_int_equal(f->rec.hidden_count, i == 0 ? 1 : 0);
    }
    assert_int_equal(check_sum(f, STORE_MANIFEST), 0);
    assert_int_equal(check_sum(f, STORE_RECORD), 0);
}

static bool may_be_missing(const char *name, const char *key)
{
    static const char *const later[] = {
        "protect", "frozenFilesystems", "mountedFilesystems",
        "devices", "userDevices",       "media",
        "bases",   "ownerVm",           "ownerSnapshot",
        "sum"};

    for (size_t i = 0; i < ARRAY_LEN(later); i++)
        if (strcmp(key, later[i]) == 0)
            return true;
    return strcmp(name, STORE_RECORD) == 0;
}

static void try_member(struct fixture *f, const char *name, const json_t *root,
                       json_t *object, const char *key)
{
    json_t *value = json_incref(json_object_get(object, key));
    char other[80], want[128];
    int r;

    json_object_del(object, key);
    put_json(f, name, root);
    r = load(f, name);
    if (r < 0) {
        snprintf(want, sizeof(want),
                 strcmp(key, "version") == 0 ? "no %s" : "\"%s\" is missing",
                 key);
        assert_false(strcmp(name, STORE_MANIFEST) == 0 &&
                     may_be_missing(name, key));
        assert_int_equal(r, QSTILL_E_CORRUPT);
        if (!strstr(f->err.message, "empty argv"))
            assert_non_null(strstr(f->err.message, want));
    } else if (!may_be_missing(name, key)) {
        fail_msg("%s may be missing in %s", key, name);
    }
    snprintf(other, sizeof(other), "%s'", key);
    json_object_set(object, other, value);
    put_json(f, name, root);
    if (load(f, name) != QSTILL_E_CORRUPT)
        fail_msg("%s may be called %s in %s", key, other, name);
    if (r == 0) {
        snprintf(want, sizeof(want), "%s is damaged: \"%s\" is unknown", name,
                 other);
        assert_string_equal(f->err.message, want);
        assert_non_null(strstr(f->err.hint, "from a backup"));
    }
    json_object_del(object, other);
    json_object_set_new(object, key, value);
}

static void try_members(struct fixture *f, const char *name, const json_t *root,
                        json_t *v)
{
    json_t *members = json_copy(v), *item; /* those of v change their places */
    const char *key;
    size_t i;

    json_array_foreach(members, i, item) try_members(f, name, root, item);
    json_object_foreach(members, key, item)
    {
        try_members(f, name, root, item);
        try_member(f, name, root, v, key);
    }
    json_decref(members);
}

static void each_member_is_there_and_no_other(void **state)
{
    struct fixture *f = *state;

    for (size_t k = 0; k < ARRAY_LEN(files); k++) {
        json_t *root;

        put_anew(f, files[k]);
        root = json_of(f, files[k]);
        try_members(f, files[k], root, root);
        put_json(f, files[k], root);
        assert_int_equal(load(f, files[k]), 0);
        json_decref(root);
    }
}

static void what_contradicts_itself_is_damage(void **state)
{
    static const struct {
        const char *from, *to, *message;
    } cases[] = {
        {"\"mode\": \"cow\"", "\"mode\": \"disk\"",
         "manifest.json is damaged: \"memory\" is not as \"mode\" says"},
        {"\"runState\": \"running\"", "\"runState\": \"runninf\"",
         "\"runState\" is no state"},
        {"\"disks\": [",
         "\"disks\": [{\"name\": \"disk0-dev\", \"qdev\": null, \"device\": "
         "null, \"node\": null, \"path\": \"/a\", \"format\": \"raw\", "
         "\"virtualSize\": 1, \"dev\": 0, \"ino\": 0, \"fileSize\": 0, "
         "\"mtimeNs\": 0, \"headerHash\": null},",
         "\"disks\" is a list with one of them twice"},
    };
    struct fixture *f = *state;
    json_t *root;

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        put_anew(f, STORE_MANIFEST);
        edit(f, STORE_MANIFEST, cases[i].from, cases[i].to);
        assert_int_equal(load(f, STORE_MANIFEST), QSTILL_E_CORRUPT);
        assert_non_null(strstr(f->err.message, cases[i].message));
    }
    put_anew(f, STORE_MANIFEST);
    root = json_of(f, STORE_MANIFEST);
    json_object_set_new(root, "memory", json_null());
    put_json(f, STORE_MANIFEST, root);
    assert_int_equal(load(f, STORE_MANIFEST), QSTILL_E_CORRUPT);
    assert_non_null(strstr(f->err.message, "not as \"mode\" says"));
    json_object_set_new(root, "mode", json_string("disk"));
    put_json(f, STORE_MANIFEST, root);
    json_decref(root);
    assert_int_equal(load(f, STORE_MANIFEST), 0);
    assert_int_equal(mkdirat(f->snapfd, STORE_MEMORY, 0700), 0);
    assert_int_equal(load(f, STORE_MANIFEST), QSTILL_E_CORRUPT);
    assert_non_null(strstr(f->err.message, "\"memory\" is null, but there is "
                                           "a memory directory"));
}

/* ---------------------------------------------------------------------- sum */

static void a_change_is_told_and_refused_by_nobody_who_reads(void **state)
{
    struct fixture *f = *state;

    put_anew(f, STORE_MANIFEST);
    assert_int_equal(load(f, STORE_MANIFEST), 0);
    assert_int_equal(check_sum(f, STORE_MANIFEST), 0);
    edit(f, STORE_MANIFEST, "\"labels\": []", "\"labels\": [\"a=b\"]");
    assert_int_equal(load(f, STORE_MANIFEST), 0);
    assert_string_equal(f->m.labels[0], "a=b");
    assert_int_equal(check_sum(f, STORE_MANIFEST), QSTILL_E_CORRUPT);
    assert_string_equal(
        f->err.message,
        "snapshot one: manifest.json was changed after it was written");
    assert_non_null(strstr(f->err.hint, "put null in the place"));
}

static void writing_it_anew_makes_no_change_good(void **state)
{
    struct fixture *f = *state;

    put_anew(f, STORE_MANIFEST);
    edit(f, STORE_MANIFEST, "\"vcpus\": 1", "\"vcpus\": 3");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(load(f, STORE_MANIFEST), 0);
        f->m.name = i ? "renamed" : "again";
        save(f, STORE_MANIFEST);
        assert_int_equal(check_sum(f, STORE_MANIFEST), QSTILL_E_CORRUPT);
    }
    /* as the hint says */
    edit(f, STORE_MANIFEST, "\"sum\": \"changed\"", "\"sum\": null");
    assert_int_equal(load(f, STORE_MANIFEST), 0);
    assert_int_equal(check_sum(f, STORE_MANIFEST), 0);
    f->m.name = "one";
    save(f, STORE_MANIFEST);
    assert_int_equal(check_sum(f, STORE_MANIFEST), 0);
    edit(f, STORE_MANIFEST, "\"sum\": \"xxh3:", "\"sum\": \"xxh3;");
    assert_int_equal(check_sum(f, STORE_MANIFEST), QSTILL_E_CORRUPT);
}

static void the_sum_is_the_last_member_whatever_else_is_called_so(void **state)
{
    struct fixture *f = *state;
    json_t *root, *sum;

    put_anew(f, STORE_MANIFEST);
    f->m.name = "sum";
    f->m.description = "\"sum\": \"xxh3:0000000000000000\"\n}";
    save(f, STORE_MANIFEST);
    assert_int_equal(load(f, STORE_MANIFEST), 0);
    assert_int_equal(check_sum(f, STORE_MANIFEST), 0);
    root = json_of(f, STORE_MANIFEST);
    /* behind it would be what it does not count */
    sum = json_incref(json_object_get(root, "host"));
    json_object_del(root, "host");
    json_object_set_new(root, "host", sum);
    put_json(f, STORE_MANIFEST, root);
    assert_int_equal(load(f, STORE_MANIFEST), 0);
    assert_int_equal(check_sum(f, STORE_MANIFEST), QSTILL_E_CORRUPT);
    json_object_del(root, "sum");
    put_json(f, STORE_MANIFEST, root);
    assert_int_equal(check_sum(f, STORE_MANIFEST), 0);
    json_decref(root);
}

/* -------------------------------------------------------------------- flips */

static unsigned first_seed(void)
{
    const char *s = getenv("QSTILL_TEST_SEED");
    unsigned seed = s ? (unsigned)strtoul(s, NULL, 10) : (unsigned)time(NULL);

    print_message("QSTILL_TEST_SEED=%u\n", seed);
    return seed;
}

static void no_bit_can_be_another(void **state)
{
    struct fixture *f = *state;
    unsigned seed = first_seed();

    for (size_t k = 0; k < ARRAY_LEN(files); k++) {
        CLEANUP(buf_fini) struct buf text = BUF_INIT;

        put_anew(f, files[k]);
        get(f, files[k], &text);
        for (int i = 0; i < FLIPS; i++) {
            size_t at = (size_t)rand_r(&seed) % text.len;
            uint8_t bit = (uint8_t)(1 << rand_r(&seed) % 8);

            text.data[at] ^= bit;
            put(f, files[k], (const char *)text.data, text.len);
            if (load(f, files[k]) == 0 && check_sum(f, files[k]) == 0)
                fail_msg("%s: bit %u of byte %zu is not found", files[k], bit,
                         at);
            text.data[at] ^= bit;
        }
    }
}

/* In front of a colon; no string of the fixtures has one behind a quote. */
static size_t name_end(const struct buf *text, size_t at)
{
    const char *colon = memchr(text->data + at, ':', text->len - at);

    while (colon && colon[-1] != '"') {
        size_t next = (size_t)(colon + 1 - (const char *)text->data);

        colon = memchr(colon + 1, ':', text->len - next);
    }
    return colon ? (size_t)(colon - 1 - (const char *)text->data) : text->len;
}

static void without_a_sum_no_bit_of_a_name_can_be_another(void **state)
{
    struct fixture *f = *state;

    for (size_t k = 0; k < ARRAY_LEN(files); k++) {
        CLEANUP(buf_fini) struct buf text = BUF_INIT;
        size_t names = 0;

        put_fixture(f, LAST, files[k]);
        get(f, files[k], &text);
        for (size_t end = name_end(&text, 0); end < text.len;
             end = name_end(&text, end + 2), names++)
            for (size_t at = end; text.data[--at] != '"';)
                for (unsigned bit = 0; bit < 8; bit++) {
                    text.data[at] ^= (uint8_t)(1 << bit);
                    put(f, files[k], (const char *)text.data, text.len);
                    if (load(f, files[k]) == 0)
                        fail_msg("%s: bit %u of byte %zu is not found",
                                 files[k], bit, at);
                    text.data[at] ^= (uint8_t)(1 << bit);
                }
        assert_true(names > 20);
    }
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(what_earlier_versions_wrote_is_read),
        T(each_member_is_there_and_no_other),
        T(what_contradicts_itself_is_damage),
        T(a_change_is_told_and_refused_by_nobody_who_reads),
        T(writing_it_anew_makes_no_change_good),
        T(the_sum_is_the_last_member_whatever_else_is_called_so),
        T(no_bit_can_be_another),
        T(without_a_sum_no_bit_of_a_name_can_be_another),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
