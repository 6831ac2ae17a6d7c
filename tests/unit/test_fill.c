/* SPDX-License-Identifier: MIT */
/* What a guest sees, read into buffers: a compressed cluster of which layers
 * above leave but parts is read and inflated once for all of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../lib/fault_io.h"
#include "../lib/mem_tmpdir.h"
#include "base/compress.h"
#include "qcow2/fill.h"

/* The guest sees every second KiB of one cluster, and zeros between them. */
enum { CLUSTER = 65536, PART = 1024, AT = 512, WINDOWS = 4 };
enum { WINDOW = CLUSTER / WINDOWS };

static int dir;
static char dir_path[128];
static struct fault_io fault;
static uint8_t content[CLUSTER], seen[CLUSTER];
static struct image image;
static struct image *layers[] = {&image};
static struct chain chain = {.layers = layers, .n = 1};
static struct extents view;
static struct filler filler;
static struct fill fills[WINDOWS];
static unsigned done;

static void make_file(void)
{
    static uint8_t packed[CLUSTER];
    size_t used;

    for (size_t i = 0; i < CLUSTER; i++)
        content[i] = (uint8_t)(i / 100 + 1);
    assert_int_equal(
        compress_deflate(packed, sizeof(packed), content, CLUSTER, &used), 0);
    image.fd =
        openat(dir, "image", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(image.fd >= 0);
    assert_int_equal(pwrite(image.fd, packed, used, AT), used);
}

/* Parts of the cluster, in turns out of each layer. */
static void make_view(unsigned layer_count)
{
    extents_fini(&view);
    for (uint64_t i = 0; i < CLUSTER / PART; i += 2) {
        struct extent e = {.guest = i * PART,
                           .len = PART,
                           .host = AT,
                           .kind = EXTENT_COMPRESSED,
                           .clen = 2 * CLUSTER,
                           .layer = (uint16_t)(i / 2 % layer_count)};

        assert_int_equal(extents_push(&view, &e), 0);
    }
}

static int setup(void **state)
{
    (void)state;
    dir = mem_tmpdir_make(dir_path);
    make_file();
    fault_io_init(&fault, NULL);
    fault.kinds = FAULT_READ;
    image.io = chain.io = &fault.io;
    image.path = (char *)(uintptr_t) "image";
    image.direct = -1;
    image.cluster_size = CLUSTER;
    image.info.format = QCOW2_FORMAT_QCOW2;
    make_view(1);
    filler = (struct filler){.chain = &chain, .view = &view};
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    aio_closep(&filler.aio);
    for (unsigned i = 0; i < WINDOWS; i++)
        fill_fini(&fills[i]);
    filler_fini(&filler);
    extents_fini(&view);
    close(image.fd);
    mem_tmpdir_remove(dir_path, dir);
    return 0;
}

static void is_over(struct fill *f)
{
    (void)f;
    done++;
}

static void prepare(void)
{
    memset(seen, 0xee, sizeof(seen));
    done = 0;
    for (unsigned i = 0; i < WINDOWS; i++) {
        fills[i].done = is_over;
        fill_begin(&fills[i], seen + i * WINDOW, WINDOW);
        assert_int_equal(fill_guest(&filler, &fills[i], i * WINDOW, WINDOW), 0);
    }
}

static void run(void)
{
    struct qstill_error err;

    if (!filler.aio)
        assert_int_equal(aio_open(&filler.aio, &fault.io, NULL, &err), 0);
    prepare();
    /* not in the order in which they were made */
    for (unsigned i = WINDOWS; i-- > 0;)
        fill_start(&filler, &fills[i]);
    while (done < WINDOWS)
        assert_int_equal(aio_wait(filler.aio, 1, -1, &err), 0);
}

static void all_failed(int code, const char *word)
{
    for (unsigned i = 0; i < WINDOWS; i++) {
        assert_int_equal(fills[i].error, code);
        assert_non_null(strstr(fills[i].why.message, word));
    }
}

static void all_is_there(void)
{
    for (unsigned i = 0; i < WINDOWS; i++)
        assert_int_equal(fills[i].error, 0);
    for (size_t i = 0; i < CLUSTER; i++)
        assert_int_equal(seen[i], i / PART % 2 ? 0 : content[i]);
}

static void it_is_read_once(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        run();
        all_is_there();
        assert_true(fault.seen <= 2); /* and for the end of the file */
    }
}

static void an_error_is_everybodys(void **state)
{
    (void)state;
    fault.at = 1;
    fault.error = EIO;
    run();
    all_failed(QSTILL_E_FAILED, "reading image");
}

static void damage_is_everybodys(void **state)
{
    (void)state;
    assert_int_equal(ftruncate(image.fd, AT + 20), 0);
    run();
    all_failed(QSTILL_E_CORRUPT, "damaged");
}

static void what_was_not_started_holds_up_nobody(void **state)
{
    struct fill other = {0};
    uint8_t some[WINDOW];

    (void)state;
    fill_begin(&other, some, WINDOW);
    assert_int_equal(fill_guest(&filler, &other, 0, WINDOW), 0);
    run();
    all_is_there();
    fill_fini(&other);
}

/* As by a layer between that has smaller clusters, compressed ones, too. */
static void what_lies_inside_does_not_put_it_away(void **state)
{
    struct image between = image;
    struct image *both[] = {&image, &between};

    (void)state;
    chain.layers = both;
    chain.n = 2;
    make_view(2); /* each from a place of its own */
    run();
    chain.layers = layers;
    chain.n = 1;
    all_is_there();
    assert_true(fault.seen <= 4);
}

static size_t allocated(void)
{
    struct mallinfo2 m = mallinfo2(); /* zeros under a sanitizer */

    return m.uordblks + m.hblkhd;
}

/* A sector of each of many clusters that say to be large when packed. */
static void what_waits_to_be_read_takes_no_memory(void **state)
{
    enum { MANY = 256, LARGE = 2 << 20 };
    static uint8_t buffer[MANY * 512];
    struct fill f = {.done = is_over};
    struct qstill_error err;
    size_t before, grown;

    (void)state;
    image.cluster_size = LARGE;
    extents_fini(&view);
    for (uint64_t i = 0; i < MANY; i++) {
        struct extent e = {.guest = i * 512,
                           .len = 512,
                           .host = AT + i,
                           .kind = EXTENT_COMPRESSED,
                           .clen = LARGE};

        assert_int_equal(extents_push(&view, &e), 0);
    }
    assert_int_equal(aio_open(&filler.aio, &fault.io, NULL, &err), 0);
    done = 0;
    before = allocated();
    fill_begin(&f, buffer, sizeof(buffer));
    assert_int_equal(fill_guest(&filler, &f, 0, sizeof(buffer)), 0);
    fill_start(&filler, &f);
    grown = allocated() - before;
    aio_settle(filler.aio);
    assert_int_equal(done, 1);
    assert_true(grown < LARGE);
    fill_fini(&f);
}

static void *fill_one(void *arg)
{
    fill_now(&fault.io, arg);
    return NULL;
}

static void threads_read_it_once(void **state)
{
    pthread_t threads[WINDOWS];

    (void)state;
    prepare();
    for (unsigned i = 0; i < WINDOWS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, fill_one, &fills[i]),
                         0);
    for (unsigned i = 0; i < WINDOWS; i++)
        pthread_join(threads[i], NULL);
    all_is_there();
    assert_true(fault.seen <= 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_is_read_once, setup, teardown),
        cmocka_unit_test_setup_teardown(an_error_is_everybodys, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(damage_is_everybodys, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_not_started_holds_up_nobody,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(what_lies_inside_does_not_put_it_away,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(what_waits_to_be_read_takes_no_memory,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(threads_read_it_once, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
