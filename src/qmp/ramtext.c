/* SPDX-License-Identifier: MIT */
#include "ramtext.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "field.h"

#define LINE_MAX_BYTES 1024 /* a name of 255 and some 200 of numbers */
#define COLUMNS_MAX    16

/* ---------------------------------------------------------- lines and tokens
 */

/* Copies the next line, without its end, cut to fit; false at the text's end.
 */
static bool next_line(const char **text, char line[LINE_MAX_BYTES])
{
    size_t len = strcspn(*text, "\r\n");
    size_t fit = len < LINE_MAX_BYTES ? len : LINE_MAX_BYTES - 1;

    if (**text == '\0')
        return false;
    memcpy(line, *text, fit);
    line[fit] = '\0';
    *text += len;
    *text += strspn(*text, "\r\n");
    return true;
}

/* Rows to make room for: no more than lines, and no more than the limit. */
static size_t rows_of(const char *text)
{
    size_t lines = 1;

    for (; *text && lines < RAMTEXT_ROWS_MAX; text++)
        lines += *text == '\n' || *text == '\r';
    return lines;
}

static char *skip_blanks(char *s)
{
    return s + strspn(s, " \t");
}

static void cut_blanks(char *s)
{
    size_t len = strlen(s);

    while (len > 0 && (s[len - 1] == ' ' || s[len - 1] == '\t'))
        s[--len] = '\0';
}

/* Cuts the last token off the line; NULL when there is none. */
static char *take_last_token(char *line)
{
    char *at;

    cut_blanks(line);
    if (!*line)
        return NULL;
    for (at = line + strlen(line); at > line; at--)
        if (at[-1] == ' ' || at[-1] == '\t')
            break;
    if (at > line)
        at[-1] = '\0';
    return at;
}

/* A whole token of hexadecimal digits, with or without 0x. */
static bool parse_hex(const char *token, uint64_t *out)
{
    char *end;

    if (!isxdigit((unsigned char)*token))
        return false;
    errno = 0;
    *out = strtoull(token, &end, 16);
    return errno == 0 && *end == '\0';
}

static int not_understood(const char *what, const char *line,
                          struct qstill_error *err)
{
    char shown[128];

    field_printable(shown, sizeof(shown), line);
    return err_set(err, QSTILL_E_FAILED, "cannot understand QEMU's '%s': '%s'",
                   what, shown);
}

static int too_many(const char *what, struct qstill_error *err)
{
    return err_set(err, QSTILL_E_FAILED, "QEMU's '%s' has more than %d rows",
                   what, RAMTEXT_ROWS_MAX);
}

/* ------------------------------------------------------------ info ramblock */

#define RAMBLOCK      "info ramblock"
#define RAMBLOCK_HEAD "Block Name"

enum column { PSIZE, OFFSET, USED, TOTAL, HVA, OTHER, COLUMN_KINDS };

struct columns {
    size_t count;
    enum column kinds[COLUMNS_MAX];
};

/* All columns that begin behind the name, in their order. */
static bool parse_head(char *line, struct columns *out)
{
    static const char *const names[OTHER] = {"PSize", "Offset", "Used", "Total",
                                             "HVA"};
    char *at = strstr(line, RAMBLOCK_HEAD), *save = NULL;

    if (!at || at != skip_blanks(line))
        return false;
    out->count = 0;
    at = strtok_r(at + strlen(RAMBLOCK_HEAD), " \t", &save);
    for (; at; at = strtok_r(NULL, " \t", &save)) {
        enum column c = 0;

        if (out->count == COLUMNS_MAX)
            return false;
        while (c < OTHER && strcmp(at, names[c]) != 0)
            c++;
        out->kinds[out->count++] = c;
    }
    return true;
}

/* "4 KiB": two tokens, taken from the end. */
static bool take_page_size(char *line, uint64_t *out)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB"};
    const char *unit = take_last_token(line);
    const char *number = unit ? take_last_token(line) : NULL;
    char *end;
    size_t u = 0;
    uint64_t n;

    if (!number || !isdigit((unsigned char)*number))
        return false;
    while (u < ARRAY_LEN(units) && strcmp(unit, units[u]) != 0)
        u++;
    n = strtoull(number, &end, 10);
    if (u == ARRAY_LEN(units) || *end || n == 0 || n > 1u << 20)
        return false;
    *out = n << (10 * u);
    return true;
}

/* From the right to the left: the name, whose width is free, remains. */
static bool parse_block(char *line, const struct columns *c,
                        struct qmp_ram_block *out, uint32_t *seen)
{
    uint64_t values[COLUMN_KINDS] = {0};

    *seen = 0;
    for (size_t i = c->count; i-- > 0;) {
        enum column kind = c->kinds[i];
        const char *token = NULL;

        if (kind == PSIZE) {
            if (!take_page_size(line, &values[kind]))
                return false;
        } else {
            token = take_last_token(line);
            if (!token || (kind != OTHER && !parse_hex(token, &values[kind])))
                return false;
        }
        *seen |= 1u << kind;
    }
    cut_blanks(line);
    out->page_size = values[PSIZE];
    out->offset = values[OFFSET];
    out->used = values[USED];
    out->total = values[TOTAL];
    out->hva = values[HVA];
    return out->used <= out->total;
}

static int add_block(struct qmp_ram *ram, char *line, const struct columns *c,
                     struct qstill_error *err)
{
    const uint32_t need = 1u << PSIZE | 1u << USED | 1u << TOTAL;
    struct qmp_ram_block block = {0};
    char whole[LINE_MAX_BYTES];
    uint32_t seen;

    memcpy(whole, line, strlen(line) + 1);
    if (!parse_block(line, c, &block, &seen) || (seen & need) != need)
        return not_understood(RAMBLOCK, whole, err);
    if (ram->count == RAMTEXT_ROWS_MAX)
        return too_many(RAMBLOCK, err);
    block.name = strdup(skip_blanks(line));
    if (!block.name)
        return err_nomem(err);
    ram->blocks[ram->count++] = block;
    return 0;
}

int ramtext_blocks(const char *text, struct qmp_ram *out,
                   struct qstill_error *err)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;
    char line[LINE_MAX_BYTES] = "";
    struct columns columns;

    ram.blocks = calloc(rows_of(text), sizeof(*ram.blocks));
    if (!ram.blocks)
        return err_nomem(err);
    if (!next_line(&text, line) || !parse_head(line, &columns))
        return not_understood(RAMBLOCK, line, err);
    while (next_line(&text, line))
        if (*skip_blanks(line) && add_block(&ram, line, &columns, err) < 0)
            return err->code;
    *out = ram;
    ram = (struct qmp_ram)QMP_RAM_INIT;
    return 0;
}

/* ------------------------------------------------------------ info mtree -f */

#define MTREE "info mtree -f"

/* The kinds of ranges that RAM blocks stand behind. "ramd" is a device's. */
static const struct {
    const char *word;
    bool rom;
} range_kinds[] = {{"ram", false},
                   {"nv-ram", false},
                   {"rom", true},
                   {"nv-rom", true},
                   {"romd", true}};

static bool is_ram_kind(const char *word, bool *rom)
{
    for (size_t i = 0; i < ARRAY_LEN(range_kinds); i++)
        if (strcmp(word, range_kinds[i].word) == 0) {
            *rom = range_kinds[i].rom;
            return true;
        }
    return false;
}

/* "NAME", "NAME @OFFSET", either with " KVM" behind. */
static bool parse_region(char *at, struct qmp_ram_range *r, char **name)
{
    char *offset;

    *name = at;
    cut_blanks(at);
    if (strlen(at) > 4 && strcmp(at + strlen(at) - 4, " KVM") == 0)
        at[strlen(at) - 4] = '\0';
    offset = strstr(at, " @");
    r->offset = 0;
    if (offset) {
        *offset = '\0';
        return parse_hex(offset + 2, &r->offset);
    }
    return true;
}

/* "  START-END (prio P, KIND): NAME...", with END the last byte. Whatever is
 * not a range of RAM gives false. */
static bool parse_range(char *line, struct qmp_ram_range *r, char **name)
{
    char *at = skip_blanks(line), *dash = strchr(at, '-');
    char *open = strstr(at, " (prio "), *kind, *close;
    uint64_t last;

    if (!dash || !open || dash > open)
        return false;
    *dash = *open = '\0';
    if (!parse_hex(at, &r->gpa) || !parse_hex(dash + 1, &last) ||
        last < r->gpa || add_u64(last - r->gpa, 1, &r->size))
        return false;
    kind = strstr(open + 1, ", ");
    close = kind ? strstr(kind, "): ") : NULL;
    if (!close)
        return false;
    *close = '\0';
    return is_ram_kind(kind + 2, &r->rom) && parse_region(close + 3, r, name);
}

static int add_range(struct qmp_ram_map *map, char *line,
                     struct qstill_error *err)
{
    struct qmp_ram_range r = {0};
    char *name;

    if (!parse_range(line, &r, &name))
        return 0;
    if (map->count == RAMTEXT_ROWS_MAX)
        return too_many(MTREE, err);
    r.region = strdup(name);
    if (!r.region)
        return err_nomem(err);
    map->ranges[map->count++] = r;
    return 0;
}

/* A view is named by the address spaces that have it; the lines of the one with
 * "memory" are taken. */
int ramtext_map(const char *text, struct qmp_ram_map *out,
                struct qstill_error *err)
{
    CLEANUP(qmp_ram_map_fini) struct qmp_ram_map map = QMP_RAM_MAP_INIT;
    char line[LINE_MAX_BYTES];
    bool ours = false;

    map.ranges = calloc(rows_of(text), sizeof(*map.ranges));
    if (!map.ranges)
        return err_nomem(err);
    while (next_line(&text, line)) {
        if (strncmp(line, "FlatView ", 9) == 0) {
            if (ours)
                break;
        } else if (strncmp(line, " AS \"memory\",", 13) == 0) {
            ours = true;
        } else if (ours && add_range(&map, line, err) < 0) {
            return err->code;
        }
    }
    if (!ours)
        return err_set(err, QSTILL_E_FAILED,
                       "QEMU's '%s' shows no address space \"memory\"", MTREE);
    *out = map;
    map = (struct qmp_ram_map)QMP_RAM_MAP_INIT;
    return 0;
}

/* ----------------------------------------------------------------- info roms
 */

/* The value of "KEY=" in the line, up to a blank; in place. */
static bool take_value(const char *line, const char *key, char *out,
                       size_t size)
{
    const char *at = strstr(line, key);
    size_t len;

    if (!at)
        return false;
    at += strlen(key);
    len = strcspn(at, " ");
    if (len == 0 || len >= size)
        return false;
    memcpy(out, at, len);
    out[len] = '\0';
    return true;
}

/*
 * addr=ADDRESS size=SIZE mem=ram|rom name="NAME"     written to an address
 * REGION size=SIZE name="NAME"                       a RAM block's content
 * fw=DIR/FILE size=SIZE name="NAME"                  only in fw_cfg
 */
static bool parse_rom(char *line, struct qmp_rom *r, char **region, char **name)
{
    char value[64];
    char *size = strstr(line, " size="), *quote = strstr(line, " name=\"");
    size_t len;

    if (!size || !quote || size > quote)
        return false;
    *quote = '\0';
    *name = quote + strlen(" name=\"");
    len = strlen(*name);
    if (len > 0 && (*name)[len - 1] == '"')
        (*name)[len - 1] = '\0';
    r->has_addr = strncmp(line, "addr=", 5) == 0;
    if (r->has_addr && (!take_value(line, "addr=", value, sizeof(value)) ||
                        !parse_hex(value, &r->addr)))
        return false;
    if (!take_value(size, " size=", value, sizeof(value)) ||
        !parse_hex(value, &r->size))
        return false;
    r->rom = take_value(size, " mem=", value, sizeof(value)) &&
             strcmp(value, "rom") == 0;
    *size = '\0';
    *region = line[0] == '/' ? line : line + strlen(line);
    return true;
}

static int add_rom(struct qmp_roms *roms, char *line, struct qstill_error *err)
{
    struct qmp_rom r = {0};
    char whole[LINE_MAX_BYTES];
    char *region, *name;

    memcpy(whole, line, strlen(line) + 1);
    if (!parse_rom(line, &r, &region, &name))
        return not_understood("info roms", whole, err);
    if (roms->count == RAMTEXT_ROWS_MAX)
        return too_many("info roms", err);
    r.region = strdup(region);
    r.name = strdup(name);
    roms->items[roms->count++] = r;
    return r.region && r.name ? 0 : err_nomem(err);
}

int ramtext_roms(const char *text, struct qmp_roms *out,
                 struct qstill_error *err)
{
    CLEANUP(qmp_roms_fini) struct qmp_roms roms = QMP_ROMS_INIT;
    char line[LINE_MAX_BYTES];

    roms.items = calloc(rows_of(text), sizeof(*roms.items));
    if (!roms.items)
        return err_nomem(err);
    while (next_line(&text, line))
        if (*skip_blanks(line) && add_rom(&roms, line, err) < 0)
            return err->code;
    *out = roms;
    roms = (struct qmp_roms)QMP_ROMS_INIT;
    return 0;
}

/* ------------------------------------------------------------------ gpa2hva */

/* "Host virtual address for 0xGPA (REGION) is 0xHVA" */
int ramtext_hva(const char *text, uint64_t *hva, char region[QMP_REGION_MAX],
                struct qstill_error *err)
{
    char line[LINE_MAX_BYTES] = "";
    char *open, *close;
    uint64_t value;

    next_line(&text, line);
    if (strstr(line, "is not RAM") || strstr(line, "No memory is mapped"))
        return err_set(err, QSTILL_E_NOT_FOUND, "%s", line);
    cut_blanks(line);
    open = strstr(line, " (");
    close = open ? strstr(open, ") is ") : NULL;
    if (!close || close - open - 2 >= QMP_REGION_MAX ||
        !parse_hex(close + strlen(") is "), &value) || value == 0)
        return not_understood("gpa2hva", line, err);
    memcpy(region, open + 2, (size_t)(close - open - 2));
    region[close - open - 2] = '\0';
    *hva = value;
    return 0;
}
