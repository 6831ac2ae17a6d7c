/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../lib/mem_stream.h"

#define HEAD   "5145564d 00000003 07 00000002 7063" /* machine "pc" */
#define START  "01 00000002 03 72616d 00000000 00000004"
#define LIST_A "0000000000002004 01 61 0000000000002000"
#define EOS    "0000000000000010"
#define FOOTER "7e 00000002"
#define LISTED HEAD START LIST_A EOS FOOTER
#define PART   "02 00000002"
#define DEVICE "04 00000000 01 78 00000000 00000001 aa 7e00000000 00"

static int parse(const struct buf *data, enum stream_flavour flavour,
                 size_t piece, struct buf *log, struct qstill_error *err)
{
    CLEANUP(stream_parser_freep) struct stream_parser *p = NULL;

    assert_int_equal(
        stream_parser_new(&p, flavour, &mem_stream_log_events, log, err), 0);
    return mem_stream_feed(p, data, piece, err);
}

static void expect_refused(const char *hex, enum stream_flavour flavour,
                           int code, const char *message)
{
    CLEANUP(buf_fini) struct buf data = BUF_INIT;
    CLEANUP(buf_fini) struct buf log = BUF_INIT;
    struct qstill_error err;

    mem_stream_hex(&data, hex);
    assert_int_equal(parse(&data, flavour, 1 << 20, &log, &err), code);
    assert_string_equal(err.message, message);
    /* and the same when it drips in */
    assert_int_equal(parse(&data, flavour, 1, &log, &err), code);
    assert_string_equal(err.message, message);
}

static const char background_log[] = "block 0 pc.ram 16384\n"
                                     "block 1 rom 8192\n"
                                     "blocks done\n"
                                     "part\n"
                                     "page 0 4096 11\n"
                                     "zero 0 8192\n"
                                     "page 1 0 22\n"
                                     "ram done\n";

static void stream_of_background_is_told_piece_by_piece(void **state)
{
    CLEANUP(buf_fini) struct buf data = BUF_INIT;
    CLEANUP(buf_fini) struct buf log = BUF_INIT;
    CLEANUP(buf_fini) struct buf tail = BUF_INIT;
    struct qstill_error err;

    (void)state;
    mem_stream_start(&data, 4);
    mem_stream_part(&data);
    mem_stream_devices(&tail);
    buf_append(&data, tail.data, tail.len);
    assert_int_equal(parse(&data, STREAM_BACKGROUND, 1 << 20, &log, &err), 0);
    assert_memory_equal(log.data, background_log, strlen(background_log));
    /* the tail is handed on whole, from its type byte on */
    assert_int_equal(log.len - strlen(background_log), 2 * tail.len);
    assert_memory_equal(log.data + strlen(background_log), "0400000000", 10);
}

static void stream_pieces_of_any_size_tell_the_same(void **state)
{
    CLEANUP(buf_fini) struct buf data = BUF_INIT;
    CLEANUP(buf_fini) struct buf whole = BUF_INIT;
    struct qstill_error err;

    (void)state;
    mem_stream_start(&data, 4);
    mem_stream_part(&data);
    mem_stream_part(&data); /* a page may come again */
    mem_stream_end(&data);
    mem_stream_devices(&data);
    assert_int_equal(parse(&data, STREAM_PRECOPY, 1 << 20, &whole, &err), 0);
    for (size_t piece = 1; piece < 9000; piece += 1 + piece / 3) {
        CLEANUP(buf_fini) struct buf log = BUF_INIT;

        assert_int_equal(parse(&data, STREAM_PRECOPY, piece, &log, &err), 0);
        assert_int_equal(log.len, whole.len);
        assert_memory_equal(log.data, whole.data, log.len);
    }
}

static void stream_cut_short_is_corrupt_wherever_it_ends(void **state)
{
    CLEANUP(buf_fini) struct buf data = BUF_INIT;
    struct qstill_error err;
    size_t len;

    (void)state;
    mem_stream_start(&data, 4);
    mem_stream_part(&data);
    mem_stream_end(&data);
    len = data.len;
    for (data.len = 0; data.len <= len; data.len++) {
        CLEANUP(buf_fini) struct buf log = BUF_INIT;

        assert_int_equal(parse(&data, STREAM_PRECOPY, 1 << 20, &log, &err),
                         QSTILL_E_CORRUPT);
        assert_memory_equal(err.message, "the migration stream ends ", 26);
    }
}

static void stream_without_footers_is_understood(void **state)
{
    CLEANUP(buf_fini) struct buf data = BUF_INIT;
    CLEANUP(buf_fini) struct buf log = BUF_INIT;
    CLEANUP(stream_parser_freep) struct stream_parser *p = NULL;
    struct qstill_error err;

    (void)state;
    mem_stream_hex(&data, HEAD START LIST_A EOS PART EOS
                   "03 00000002" EOS
                   "04 00000000 01 78 00000000 00000001 aa 00");
    assert_int_equal(stream_parser_new(&p, STREAM_PRECOPY,
                                       &mem_stream_log_events, &log, &err),
                     0);
    assert_int_equal(mem_stream_feed(p, &data, 7, &err), 0);
    assert_false(stream_parser_footers(p));
    assert_string_equal(stream_parser_machine(p), "pc");
}

static void stream_configuration_parts_are_kept(void **state)
{
    static const char uuid[] = "05 12 636f6e66696775726174696f6e2f75756964"
                               "00000001 00112233445566778899aabbccddeeff";
    CLEANUP(buf_fini) struct buf data = BUF_INIT;
    CLEANUP(buf_fini) struct buf want = BUF_INIT;
    CLEANUP(buf_fini) struct buf log = BUF_INIT;
    CLEANUP(stream_parser_freep) struct stream_parser *p = NULL;
    struct qstill_error err;

    (void)state;
    mem_stream_hex(&want, uuid);
    mem_stream_hex(&data, HEAD);
    buf_append(&data, want.data, want.len);
    mem_stream_hex(&data, START LIST_A EOS FOOTER PART EOS FOOTER DEVICE);
    assert_int_equal(stream_parser_new(&p, STREAM_BACKGROUND,
                                       &mem_stream_log_events, &log, &err),
                     0);
    assert_int_equal(mem_stream_feed(p, &data, 5, &err), 0);
    assert_true(stream_parser_footers(p));
    assert_int_equal(stream_parser_config(p)->len, want.len);
    assert_memory_equal(stream_parser_config(p)->data, want.data, want.len);
}

static void stream_commands_of_plain_migration_are_skipped(void **state)
{
    CLEANUP(buf_fini) struct buf data = BUF_INIT;
    CLEANUP(buf_fini) struct buf log = BUF_INIT;
    struct qstill_error err;

    (void)state;
    mem_stream_hex(&data, HEAD "08 0001 0000 08 0002 0004 00000001" START LIST_A
                              EOS FOOTER PART EOS FOOTER
                               "08 000b 0000 03 00000002" EOS FOOTER DEVICE);
    assert_int_equal(parse(&data, STREAM_PRECOPY, 3, &log, &err), 0);
}

struct bad {
    const char *hex;
    int code;
    const char *message;
};

static void stream_with_what_cannot_be_taken_apart_is_refused(void **state)
{
    static const struct bad cases[] = {
        {"5145564d 00000003 01", QSTILL_E_PRECONDITION,
         "the migration stream has no configuration section"},
        {HEAD "05 03 616263 00000001", QSTILL_E_PRECONDITION,
         "the stream's configuration has a part 'abc' that is not known here"},
        {HEAD "05 1e 636f6e66696775726174696f6e2f"
              "7461726765742d706167652d62697473 00000001 00000010",
         QSTILL_E_PRECONDITION,
         "the guest has pages of 2^16 bytes, not of 4096"},
        {HEAD "05 1a 636f6e66696775726174696f6e2f6361706162696c6974696573"
              "00000001 00000001 0f 782d69676e6f72652d736861726564",
         QSTILL_E_PRECONDITION,
         "the migration capability x-ignore-shared is on"},
        {HEAD "01 00000002 05 626c6f636b 00000000 00000001",
         QSTILL_E_PRECONDITION,
         "the stream has a section 'block' in front of the end of RAM, which "
         "cannot be told apart"},
        {LISTED "04 00000007 02 766d 00000000 00000001", QSTILL_E_PRECONDITION,
         "the stream has a section 'vm' in front of the end of RAM, which "
         "cannot be told apart"},
        {LISTED "08 0003 0010", QSTILL_E_PRECONDITION,
         "the stream has command 3: is postcopy on?"},
        {LISTED PART "0000000000000040", QSTILL_E_PRECONDITION,
         "the stream's RAM is sent with xbzrle"},
        {LISTED PART "0000000000000120", QSTILL_E_PRECONDITION,
         "the stream's RAM is sent with compress"},
        {LISTED PART "0000000000000200", QSTILL_E_PRECONDITION,
         "the stream's RAM is sent with multifd"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        expect_refused(cases[i].hex, STREAM_PRECOPY, cases[i].code,
                       cases[i].message);
}

static void stream_with_nonsense_is_corrupt(void **state)
{
    static const struct bad cases[] = {
        {"7f454c46 00000003", QSTILL_E_CORRUPT,
         "this is no migration stream: it begins with 7f454c46"},
        {"5145564d 00000002", QSTILL_E_CORRUPT,
         "the migration stream has version 2, not 3"},
        {"5145564d 00000003 07 00010000", QSTILL_E_CORRUPT,
         "the stream's machine type has a name of 65536 bytes"},
        {"5145564d 00000003 07 00000002 7000", QSTILL_E_CORRUPT,
         "the stream's machine type holds byte 00"},
        {HEAD "00", QSTILL_E_CORRUPT, "the stream ends without a device state"},
        {HEAD "55", QSTILL_E_CORRUPT, "the stream has an item of type 55"},
        {HEAD PART, QSTILL_E_CORRUPT,
         "the stream goes on with section 2, which has not begun"},
        {LISTED "02 00000003", QSTILL_E_CORRUPT,
         "the stream goes on with section 3, which has not begun"},
        {LISTED "03 00000002" EOS FOOTER PART, QSTILL_E_CORRUPT,
         "the stream goes on with RAM behind its end"},
        {LISTED START, QSTILL_E_CORRUPT, "the stream starts RAM twice"},
        {HEAD "01 00000002 03 72616d 00000000 00000003", QSTILL_E_CORRUPT,
         "the stream's RAM is instance 0, version 3"},
        {HEAD START EOS, QSTILL_E_CORRUPT,
         "the stream's RAM begins without its list"},
        {HEAD START "0000000000000004", QSTILL_E_CORRUPT,
         "the stream lists its RAM twice, or none"},
        {LISTED PART "0000000000001004", QSTILL_E_CORRUPT,
         "the stream lists its RAM twice, or none"},
        {HEAD START "0000000000002004 01 61 0000000000001000"
                    "01 61 0000000000001000",
         QSTILL_E_CORRUPT, "the stream lists RAM block 'a' twice or unnamed"},
        {HEAD START "0000000000002004 00 0000000000001000", QSTILL_E_CORRUPT,
         "the stream lists RAM block '' twice or unnamed"},
        {HEAD START "0000000000002004 01 61 0000000000003000", QSTILL_E_CORRUPT,
         "the stream lists RAM block 'a' with 12288 bytes, 8192 are left of "
         "the total"},
        {HEAD START "0000000000002004 01 61 0000000000000001", QSTILL_E_CORRUPT,
         "the stream lists RAM block 'a' with 1 bytes, 8192 are left of the "
         "total"},
        {HEAD START "0000000000002004 01 00 0000000000001000", QSTILL_E_CORRUPT,
         "a name in the stream holds byte 00"},
        {HEAD START "0000000000000002", QSTILL_E_CORRUPT,
         "the stream has a page in front of the list of RAM"},
        {LISTED PART "0000000000000022", QSTILL_E_CORRUPT,
         "the stream's first page belongs to no RAM block"},
        {LISTED PART "0000000000000002 01 62", QSTILL_E_CORRUPT,
         "the stream has a page of RAM block 'b', which it does not list"},
        {LISTED PART "0000000000002002 01 61 00", QSTILL_E_CORRUPT,
         "the stream has a page at 8192 of RAM block 'a', which has 8192 "
         "bytes"},
        {LISTED PART "0000000000000002 01 61 07", QSTILL_E_CORRUPT,
         "the stream fills a page with byte 07"},
        {LISTED PART "0000000000000802", QSTILL_E_CORRUPT,
         "the stream has a RAM record with flags 802"},
        {LISTED PART "000000000000000a", QSTILL_E_CORRUPT,
         "the stream has a RAM record with flags 00a"},
        {LISTED PART EOS "7e 00000003", QSTILL_E_CORRUPT,
         "the stream's RAM section ends without its footer"},
        {LISTED PART EOS "02 00000002", QSTILL_E_CORRUPT,
         "the stream's RAM section ends without its footer"},
        {LISTED "08 0002 0005", QSTILL_E_CORRUPT,
         "the stream's command 2 has 5 bytes"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        expect_refused(cases[i].hex, STREAM_PRECOPY, cases[i].code,
                       cases[i].message);
}

static void stream_of_background_needs_a_part_before_the_devices(void **state)
{
    (void)state;
    expect_refused(LISTED DEVICE, STREAM_BACKGROUND, QSTILL_E_PRECONDITION,
                   "the stream has a section 'x' in front of the end of RAM, "
                   "which cannot be told apart");
}

static void stream_with_too_many_blocks_is_refused(void **state)
{
    CLEANUP(buf_fini) struct buf data = BUF_INIT;
    CLEANUP(buf_fini) struct buf log = BUF_INIT;
    struct qstill_error err;

    (void)state;
    stream_put_head(&data, "pc");
    stream_begin_ram(&data, 2000 * 4096);
    for (unsigned i = 0; i < 1025; i++) {
        CLEANUP(buf_fini) struct buf id = BUF_INIT;

        buf_printf(&id, "b%u", i);
        stream_put_block(&data, (char *)id.data, 4096);
    }
    assert_int_equal(parse(&data, STREAM_PRECOPY, 1 << 20, &log, &err),
                     QSTILL_E_CORRUPT);
    assert_string_equal(err.message,
                        "the stream lists more than 1024 RAM blocks");
}

/* A receiver that fails ends the parsing with its own error. */
static int fail_zero(void *user, unsigned index, uint64_t offset,
                     struct qstill_error *err)
{
    (void)user;
    return err_set(err, QSTILL_E_NO_SPACE, "no room for %u %llu", index,
                   (unsigned long long)offset);
}

static void stream_receivers_error_is_handed_on(void **state)
{
    struct stream_events events = mem_stream_log_events;
    CLEANUP(buf_fini) struct buf data = BUF_INIT;
    CLEANUP(buf_fini) struct buf log = BUF_INIT;
    CLEANUP(stream_parser_freep) struct stream_parser *p = NULL;
    struct qstill_error err;

    (void)state;
    events.zero = fail_zero;
    mem_stream_start(&data, 4);
    mem_stream_part(&data);
    assert_int_equal(stream_parser_new(&p, STREAM_PRECOPY, &events, &log, &err),
                     0);
    assert_int_equal(mem_stream_feed(p, &data, 100, &err), QSTILL_E_NO_SPACE);
    assert_string_equal(err.message, "no room for 0 8192");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stream_of_background_is_told_piece_by_piece),
        cmocka_unit_test(stream_pieces_of_any_size_tell_the_same),
        cmocka_unit_test(stream_cut_short_is_corrupt_wherever_it_ends),
        cmocka_unit_test(stream_without_footers_is_understood),
        cmocka_unit_test(stream_configuration_parts_are_kept),
        cmocka_unit_test(stream_commands_of_plain_migration_are_skipped),
        cmocka_unit_test(stream_with_what_cannot_be_taken_apart_is_refused),
        cmocka_unit_test(stream_with_nonsense_is_corrupt),
        cmocka_unit_test(stream_of_background_needs_a_part_before_the_devices),
        cmocka_unit_test(stream_with_too_many_blocks_is_refused),
        cmocka_unit_test(stream_receivers_error_is_handed_on),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
