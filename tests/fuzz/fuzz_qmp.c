/* SPDX-License-Identifier: MIT */
/*
 * All that parses a QMP peer's bytes without I/O. The first byte says which:
 * 0 the framer, fed in pieces: the same objects come out as in one piece, and
 *   what it holds stays bounded
 * 1 the framer, with skips to 0xFF in between, as the agent's client does
 * 2-5 the human monitor's texts about RAM: what is accepted holds together
 * 6 a schema: every question ends
 */
#include <stdlib.h>
#include <string.h>

#include "qmp/ramtext.h"
#include "qmp/schema.h"
#include "qmp/wire.h"

#define CHECK(x)                                                               \
    do {                                                                       \
        if (!(x))                                                              \
            abort();                                                           \
    } while (0)

/* ----------------------------------------------------------------- the framer
 */

/* All objects of the bytes, fed in pieces of `piece`; NULL when they are
 * corrupt. */
static json_t *frame(const uint8_t *data, size_t size, size_t piece)
{
    CLEANUP(wire_fini) struct wire w = WIRE_INIT;
    json_t *all = json_array();
    struct qstill_error err;

    for (size_t at = 0; at < size; at += piece) {
        size_t n = size - at < piece ? size - at : piece;
        json_t *v = NULL;

        CHECK(wire_feed(&w, data + at, n, &err) == 0);
        do {
            if (wire_next(&w, &v, &err) < 0) {
                CHECK(err.code == QSTILL_E_CORRUPT);
                json_decref(all);
                return NULL;
            }
            if (v)
                CHECK(json_is_object(v) && json_array_append_new(all, v) == 0);
        } while (v);
        CHECK(w.scan == w.in.len && w.start <= w.scan);
        CHECK(w.depth <= WIRE_DEPTH_MAX && w.values <= WIRE_VALUES_MAX);
    }
    return all;
}

static void fuzz_frames(const uint8_t *data, size_t size)
{
    static const size_t pieces[] = {1, 3, 17};
    json_t *whole = frame(data, size, size + 1);

    for (size_t i = 0; i < ARRAY_LEN(pieces); i++) {
        json_t *cut = frame(data, size, pieces[i]);

        CHECK(!cut == !whole);
        CHECK(!whole || json_equal(cut, whole));
        json_decref(cut);
    }
    json_decref(whole);
}

static void fuzz_skips(const uint8_t *data, size_t size)
{
    CLEANUP(wire_fini) struct wire w = WIRE_INIT;
    struct qstill_error err;

    for (size_t at = 0; at < size; at += 5) {
        json_t *v = NULL;

        CHECK(wire_feed(&w, data + at, size - at < 5 ? size - at : 5, &err) ==
              0);
        if (!wire_skip_past(&w, 0xff))
            CHECK(w.in.len == 0);
        else if (wire_next(&w, &v, &err) == 0)
            json_decref(v);
    }
}

/* ------------------------------------------------------------------ the texts
 */

static void fuzz_blocks(const char *text)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;
    struct qstill_error err;

    if (ramtext_blocks(text, &ram, &err) < 0) {
        CHECK(ram.count == 0 && !strpbrk(err.message, "\r\n"));
        return;
    }
    CHECK(ram.count <= RAMTEXT_ROWS_MAX);
    for (size_t i = 0; i < ram.count; i++) {
        CHECK(ram.blocks[i].used <= ram.blocks[i].total);
        CHECK(ram.blocks[i].page_size != 0);
        CHECK(qmp_ram_find(&ram, ram.blocks[i].name) != NULL);
    }
}

static void fuzz_map(const char *text)
{
    CLEANUP(qmp_ram_map_fini) struct qmp_ram_map map = QMP_RAM_MAP_INIT;
    struct qstill_error err;

    if (ramtext_map(text, &map, &err) < 0)
        return;
    CHECK(map.count <= RAMTEXT_ROWS_MAX);
    for (size_t i = 0; i < map.count; i++)
        CHECK(map.ranges[i].size != 0 && map.ranges[i].region &&
              map.ranges[i].gpa + (map.ranges[i].size - 1) >=
                  map.ranges[i].gpa);
}

static void fuzz_roms(const char *text)
{
    CLEANUP(qmp_roms_fini) struct qmp_roms roms = QMP_ROMS_INIT;
    struct qstill_error err;

    if (ramtext_roms(text, &roms, &err) < 0)
        return;
    for (size_t i = 0; i < roms.count; i++)
        CHECK(roms.items[i].name && roms.items[i].region &&
              (!roms.items[i].has_addr || !roms.items[i].region[0]));
}

static void fuzz_hva(const char *text)
{
    char region[QMP_REGION_MAX];
    struct qstill_error err;
    uint64_t hva = 0;

    if (ramtext_hva(text, &hva, region, &err) == 0)
        CHECK(hva != 0 && strlen(region) < sizeof(region));
    else
        CHECK(hva == 0);
}

/* ----------------------------------------------------------------- the schema
 */

static void fuzz_schema(const char *text)
{
    static const char *const paths[] = {"a", "a.b", "capabilities.capability",
                                        "a.b.c.d.e.f"};
    json_t *list = json_loads(text, 0, NULL);
    struct schema *s = NULL;
    struct qstill_error err;

    if (!list || schema_parse(list, &s, &err) < 0)
        return;
    schema_has_command(s, "c");
    schema_has_event(s, "c");
    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        schema_has_argument(s, "c", paths[i]);
        schema_has_member(s, "c", paths[i]);
        schema_has_value(s, "c", paths[i], "v");
    }
    schema_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const texts[])(const char *text) = {
        fuzz_blocks, fuzz_map, fuzz_roms, fuzz_hva, fuzz_schema};
    char *text;

    if (size == 0)
        return 0;
    if (data[0] % 7 == 0)
        fuzz_frames(data + 1, size - 1);
    else if (data[0] % 7 == 1)
        fuzz_skips(data + 1, size - 1);
    else if ((text = strndup((const char *)data + 1, size - 1)) != NULL) {
        texts[data[0] % 7 - 2](text);
        free(text);
    }
    return 0;
}
