/* SPDX-License-Identifier: MIT */
/*
 * A state machine over whole elements. Happy path:
 *   header -> configuration -> subsections -> item (RAM START) -> list ->
 *   records -> footer -> item (PART ...) -> ... -> tail
 * Each step looks at what lies in front of it and either takes one element or
 * asks for more bytes; nothing is ever taken in part.
 */
#include "stream_parse.h"

#include <string.h>

#include "base/bytes.h"
#include "memstate/stream.h"

#define PAGE 4096u

/* As RAMSET_BLOCKS_MAX, so that a hostile list stays small here too. */
#define BLOCKS_MAX 1024u

enum state {
    ST_HEADER,
    ST_CONFIG,
    ST_SUBSECTION,
    ST_ITEM,
    ST_LIST,
    ST_RECORDS,
    ST_FOOTER,
    ST_TAIL,
};

enum footers { FOOTERS_UNKNOWN, FOOTERS_YES, FOOTERS_NO };

struct known_block {
    char *id;
    uint64_t size;
};

struct stream_parser {
    const struct stream_events *events;
    void *user;
    enum stream_flavour flavour;
    enum state state;
    enum footers footers;
    char machine[STREAM_NAME_MAX + 1];
    struct buf config;
    bool have_start; /* the RAM section has begun */
    bool have_list;
    bool have_part;
    bool have_end;
    uint32_t ram_id;
    uint64_t list_left; /* bytes of RAM still to be listed */
    struct known_block *blocks;
    unsigned block_count;
    unsigned current; /* of the last record; block_count: none yet */
};

/* What lies in front of a step; `more` asks for further bytes. */
struct view {
    const uint8_t *data;
    size_t len;
    bool more;
};

static bool has(struct view *v, size_t len)
{
    v->more = v->len < len;
    return !v->more;
}

static void take(struct view *v, size_t len)
{
    v->data += len;
    v->len -= len;
}

int stream_parser_new(struct stream_parser **out, enum stream_flavour flavour,
                      const struct stream_events *events, void *user,
                      struct qstill_error *err)
{
    struct stream_parser *p = calloc(1, sizeof(*p));

    if (!p)
        return err_nomem(err);
    p->events = events;
    p->user = user;
    p->flavour = flavour;
    p->config = (struct buf)BUF_INIT;
    *out = p;
    return 0;
}

void stream_parser_free(struct stream_parser *p)
{
    if (!p)
        return;
    for (unsigned i = 0; i < p->block_count; i++)
        free(p->blocks[i].id);
    free(p->blocks);
    buf_fini(&p->config);
    free(p);
}

void stream_parser_freep(struct stream_parser **p)
{
    stream_parser_free(*p);
    *p = NULL;
}

const char *stream_parser_machine(const struct stream_parser *p)
{
    return p->machine;
}

const struct buf *stream_parser_config(const struct stream_parser *p)
{
    return &p->config;
}

bool stream_parser_footers(const struct stream_parser *p)
{
    return p->footers == FOOTERS_YES;
}

/*
 * A str8 at v->data + at, as a C string: text without NUL or control bytes.
 * *end is set behind it; asks for more when it is not all there.
 */
static int get_str8(struct view *v, size_t at, char out[STREAM_NAME_MAX + 1],
                    size_t *end, struct qstill_error *err)
{
    size_t len;

    if (!has(v, at + 1))
        return 0;
    len = v->data[at];
    if (!has(v, at + 1 + len))
        return 0;
    for (size_t i = 0; i < len; i++) {
        uint8_t c = v->data[at + 1 + i];

        if (c < 0x20 || c == 0x7f)
            return err_set(err, QSTILL_E_CORRUPT,
                           "a name in the stream holds byte %02x", c);
        out[i] = (char)c;
    }
    out[len] = '\0';
    *end = at + 1 + len;
    return 0;
}

/* ------------------------------------------------- header, configuration */

static int step_header(struct stream_parser *p, struct view *v,
                       struct qstill_error *err)
{
    if (!has(v, 8))
        return 0;
    if (get_be32(v->data) != STREAM_MAGIC)
        return err_set(err, QSTILL_E_CORRUPT,
                       "this is no migration stream: it begins with %08x",
                       get_be32(v->data));
    if (get_be32(v->data + 4) != STREAM_VERSION)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the migration stream has version %u, not %u",
                       get_be32(v->data + 4), STREAM_VERSION);
    take(v, 8);
    p->state = ST_CONFIG;
    return 0;
}

static int step_config(struct stream_parser *p, struct view *v,
                       struct qstill_error *err)
{
    uint32_t len;

    if (!has(v, 1))
        return 0;
    if (v->data[0] != STREAM_CONFIGURATION)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the migration stream has no configuration section");
    if (!has(v, 5))
        return 0;
    len = get_be32(v->data + 1);
    if (len == 0 || len > STREAM_NAME_MAX)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream's machine type has a name of %u bytes", len);
    if (!has(v, 5 + len))
        return 0;
    for (uint32_t i = 0; i < len; i++)
        if (v->data[5 + i] <= 0x20 || v->data[5 + i] >= 0x7f)
            return err_set(err, QSTILL_E_CORRUPT,
                           "the stream's machine type holds byte %02x",
                           v->data[5 + i]);
    memcpy(p->machine, v->data + 5, len);
    take(v, 5 + len);
    p->state = ST_SUBSECTION;
    return 0;
}

static int check_page_bits(struct view *v, size_t *at, struct qstill_error *err)
{
    if (!has(v, *at + 4))
        return 0;
    if (get_be32(v->data + *at) != 12)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the guest has pages of 2^%u bytes, not of 4096",
                       get_be32(v->data + *at));
    *at += 4;
    return 0;
}

static int check_uuid(struct view *v, size_t *at, struct qstill_error *err)
{
    (void)err;
    if (has(v, *at + 16))
        *at += 16;
    return 0;
}

/* Those listed here change what the stream carries: all are refused. */
static int check_capabilities(struct view *v, size_t *at,
                              struct qstill_error *err)
{
    char name[STREAM_NAME_MAX + 1];
    size_t end = 0;

    if (!has(v, *at + 4))
        return 0;
    if (get_be32(v->data + *at) == 0) {
        *at += 4;
        return 0;
    }
    if (get_str8(v, *at + 4, name, &end, err) < 0)
        return err->code;
    if (v->more)
        return 0;
    return err_set(err, QSTILL_E_PRECONDITION,
                   "the migration capability %s is on", name);
}

static const struct {
    const char *name;
    int (*check)(struct view *v, size_t *at, struct qstill_error *err);
} subsections[] = {
    {"configuration/target-page-bits", check_page_bits},
    {"configuration/capabilities", check_capabilities},
    {"configuration/uuid", check_uuid},
};

/* 05 str8 name be32 version payload */
static int step_subsection(struct stream_parser *p, struct view *v,
                           struct qstill_error *err)
{
    char name[STREAM_NAME_MAX + 1];
    size_t at = 0, i = 0;

    if (!has(v, 1))
        return 0;
    if (v->data[0] != STREAM_SUBSECTION) {
        p->state = ST_ITEM;
        return 0;
    }
    if (get_str8(v, 1, name, &at, err) < 0)
        return err->code;
    if (v->more || !has(v, at + 4))
        return 0;
    while (i < ARRAY_LEN(subsections) && strcmp(name, subsections[i].name) != 0)
        i++;
    if (i == ARRAY_LEN(subsections))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the stream's configuration has a part '%s' that is "
                       "not known here",
                       name);
    at += 4;
    if (subsections[i].check(v, &at, err) < 0)
        return err->code;
    if (v->more)
        return 0;
    if (p->config.len + at > STREAM_CONFIG_MAX)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream's configuration is longer than %u bytes",
                       STREAM_CONFIG_MAX);
    if (buf_append(&p->config, v->data, at) < 0)
        return err_nomem(err);
    take(v, at);
    return 0;
}

/* ------------------------------------------------------------------ items */

static bool ram_complete(const struct stream_parser *p)
{
    return p->have_end || (p->flavour == STREAM_BACKGROUND && p->have_part);
}

/* START or FULL: type be32 id str8 idstr be32 instance be32 version */
static int step_start(struct stream_parser *p, struct view *v,
                      struct qstill_error *err)
{
    char name[STREAM_NAME_MAX + 1];
    size_t at = 0;

    if (get_str8(v, 5, name, &at, err) < 0)
        return err->code;
    if (v->more || !has(v, at + 8))
        return 0;
    if (v->data[0] == STREAM_FULL || strcmp(name, STREAM_RAM_ID) != 0)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the stream has a section '%.100s' in front of the end "
                       "of RAM, which cannot be told apart",
                       name);
    if (p->have_start)
        return err_set(err, QSTILL_E_CORRUPT, "the stream starts RAM twice");
    if (get_be32(v->data + at) != 0 ||
        get_be32(v->data + at + 4) != STREAM_RAM_VERSION)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream's RAM is instance %u, version %u",
                       get_be32(v->data + at), get_be32(v->data + at + 4));
    p->ram_id = get_be32(v->data + 1);
    p->have_start = true;
    take(v, at + 8);
    p->state = ST_RECORDS;
    return 0;
}

static int step_part(struct stream_parser *p, struct view *v,
                     struct qstill_error *err)
{
    bool end;

    if (!has(v, 5))
        return 0;
    if (!p->have_list || get_be32(v->data + 1) != p->ram_id)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream goes on with section %u, which has not "
                       "begun",
                       get_be32(v->data + 1));
    if (p->have_end)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream goes on with RAM behind its end");
    end = v->data[0] == STREAM_END;
    take(v, 5);
    p->state = ST_RECORDS;
    p->have_end = end;
    if (end)
        return 0;
    p->have_part = true;
    return p->events->part(p->user, err);
}

/* 08 be16 command be16 len bytes; none of those allowed has more than 4. */
static int step_command(struct view *v, struct qstill_error *err)
{
    unsigned command, len;

    if (!has(v, 5))
        return 0;
    command = get_be16(v->data + 1);
    len = get_be16(v->data + 3);
    if (command != STREAM_OPEN_RETURN_PATH && command != STREAM_PING &&
        command != STREAM_SWITCHOVER_START)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the stream has command %u: is postcopy on?", command);
    if (len > 4)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream's command %u has %u bytes", command, len);
    if (has(v, 5 + len))
        take(v, 5 + len);
    return 0;
}

static int step_item(struct stream_parser *p, struct view *v,
                     struct qstill_error *err)
{
    if (!has(v, 1))
        return 0;
    switch (v->data[0]) {
    case STREAM_FULL:
        if (!ram_complete(p))
            return step_start(p, v, err);
        p->state = ST_TAIL;
        return p->events->ram_done(p->user, err);
    case STREAM_START:
        return step_start(p, v, err);
    case STREAM_PART:
    case STREAM_END:
        return step_part(p, v, err);
    case STREAM_COMMAND:
        return step_command(v, err);
    case STREAM_EOF:
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream ends without a device state");
    default:
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream has an item of type %02x", v->data[0]);
    }
}

static int step_footer(struct stream_parser *p, struct view *v,
                       struct qstill_error *err)
{
    if (!has(v, 1))
        return 0;
    /* Footers cannot be negotiated: the first section shows them. */
    if (p->footers == FOOTERS_UNKNOWN)
        p->footers = v->data[0] == STREAM_FOOTER ? FOOTERS_YES : FOOTERS_NO;
    if (p->footers == FOOTERS_NO) {
        p->state = ST_ITEM;
        return 0;
    }
    if (!has(v, 5))
        return 0;
    if (v->data[0] != STREAM_FOOTER || get_be32(v->data + 1) != p->ram_id)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream's RAM section ends without its footer");
    take(v, 5);
    p->state = ST_ITEM;
    return 0;
}

/* -------------------------------------------------------------------- RAM */

/* *index is block_count when there is none. */
static unsigned find_block(const struct stream_parser *p, const char *id)
{
    unsigned i = 0;

    while (i < p->block_count && strcmp(p->blocks[i].id, id) != 0)
        i++;
    return i;
}

static int add_block(struct stream_parser *p, const char *id, uint64_t size,
                     struct qstill_error *err)
{
    char *copy;

    if (id[0] == '\0' || find_block(p, id) < p->block_count)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream lists RAM block '%s' twice or unnamed", id);
    if (size > p->list_left || size % PAGE != 0)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream lists RAM block '%s' with %llu bytes, %llu "
                       "are left of the total",
                       id, (unsigned long long)size,
                       (unsigned long long)p->list_left);
    if (p->block_count == BLOCKS_MAX)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream lists more than %u RAM blocks", BLOCKS_MAX);
    copy = strdup(id);
    if (!copy)
        return err_nomem(err);
    p->blocks[p->block_count] = (struct known_block){copy, size};
    p->list_left -= size;
    p->block_count++;
    p->current = p->block_count;
    return p->events->block(p->user, p->block_count - 1, id, size, err);
}

/* str8 id be64 used_length, until the total is reached */
static int step_list(struct stream_parser *p, struct view *v,
                     struct qstill_error *err)
{
    char id[STREAM_NAME_MAX + 1];
    size_t at = 0;

    if (get_str8(v, 0, id, &at, err) < 0)
        return err->code;
    if (v->more || !has(v, at + 8))
        return 0;
    if (add_block(p, id, get_be64(v->data + at), err) < 0)
        return err->code;
    take(v, at + 8);
    if (p->list_left > 0)
        return 0;
    p->have_list = true;
    p->state = ST_RECORDS;
    return p->events->blocks_done(p->user, err);
}

static int begin_list(struct stream_parser *p, uint64_t total,
                      struct qstill_error *err)
{
    if (p->have_list || total == 0)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream lists its RAM twice, or none");
    p->blocks = calloc(BLOCKS_MAX, sizeof(*p->blocks));
    if (!p->blocks)
        return err_nomem(err);
    p->list_left = total;
    p->state = ST_LIST;
    return 0;
}

static int refuse_flags(uint64_t word, struct qstill_error *err)
{
    static const struct {
        unsigned flag;
        const char *what;
    } known[] = {
        {STREAM_RAM_XBZRLE, "xbzrle"},
        {STREAM_RAM_HOOK, "rdma"},
        {STREAM_RAM_COMPRESS, "compress"},
        {STREAM_RAM_MULTIFD, "multifd"},
    };

    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (word & known[i].flag)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "the stream's RAM is sent with %s", known[i].what);
    return err_set(err, QSTILL_E_CORRUPT,
                   "the stream has a RAM record with flags %03x",
                   (unsigned)(word & STREAM_RAM_FLAGS));
}

/* The block of a page record: by name at v->data + 8, or as before. *at is
 * set behind it. */
static int record_block(struct stream_parser *p, struct view *v, uint64_t word,
                        size_t *at, struct qstill_error *err)
{
    char id[STREAM_NAME_MAX + 1];
    unsigned i;

    if (word & STREAM_RAM_CONTINUE) {
        *at = 8;
        if (p->current < p->block_count)
            return 0;
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream's first page belongs to no RAM block");
    }
    if (get_str8(v, 8, id, at, err) < 0)
        return err->code;
    if (v->more)
        return 0;
    i = find_block(p, id);
    if (i == p->block_count)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream has a page of RAM block '%s', which it "
                       "does not list",
                       id);
    /* Not yet taken: asking for more bytes comes here again, to the same. */
    p->current = i;
    return 0;
}

static int step_page(struct stream_parser *p, struct view *v, uint64_t word,
                     struct qstill_error *err)
{
    uint64_t offset = word & ~(uint64_t)STREAM_RAM_FLAGS;
    bool zero = (word & STREAM_RAM_ZERO) != 0;
    size_t body = zero ? 1 : PAGE;
    const uint8_t *data;
    size_t at = 0;

    if (!p->have_list)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream has a page in front of the list of RAM");
    if (record_block(p, v, word, &at, err) < 0)
        return err->code;
    if (v->more || !has(v, at + body))
        return 0;
    if (offset >= p->blocks[p->current].size)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream has a page at %llu of RAM block '%s', which "
                       "has %llu bytes",
                       (unsigned long long)offset, p->blocks[p->current].id,
                       (unsigned long long)p->blocks[p->current].size);
    data = v->data + at;
    if (zero && data[0] != 0)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream fills a page with byte %02x", data[0]);
    take(v, at + body);
    if (zero)
        return p->events->zero(p->user, p->current, offset, err);
    return p->events->page(p->user, p->current, offset, data, err);
}

static int step_record(struct stream_parser *p, struct view *v,
                       struct qstill_error *err)
{
    uint64_t word;

    if (!has(v, 8))
        return 0;
    word = get_be64(v->data);
    switch (word & STREAM_RAM_FLAGS) {
    case STREAM_RAM_PAGE:
    case STREAM_RAM_PAGE | STREAM_RAM_CONTINUE:
    case STREAM_RAM_ZERO:
    case STREAM_RAM_ZERO | STREAM_RAM_CONTINUE:
        return step_page(p, v, word, err);
    case STREAM_RAM_MEM_SIZE:
        take(v, 8);
        return begin_list(p, word & ~(uint64_t)STREAM_RAM_FLAGS, err);
    case STREAM_RAM_EOS:
        if (!p->have_list)
            return err_set(err, QSTILL_E_CORRUPT,
                           "the stream's RAM begins without its list");
        take(v, 8);
        p->state = ST_FOOTER;
        return 0;
    default:
        return refuse_flags(word, err);
    }
}

static int step_tail(struct stream_parser *p, struct view *v,
                     struct qstill_error *err)
{
    const uint8_t *data = v->data;
    size_t len = v->len;

    take(v, len);
    v->more = true;
    return len ? p->events->tail(p->user, data, len, err) : 0;
}

/* ------------------------------------------------------------------- feed */

static const struct {
    int (*step)(struct stream_parser *p, struct view *v,
                struct qstill_error *err);
    const char *where; /* for a stream that ends there */
} steps[] = {
    [ST_HEADER] = {step_header, "in its header"},
    [ST_CONFIG] = {step_config, "in its configuration"},
    [ST_SUBSECTION] = {step_subsection, "in its configuration"},
    [ST_ITEM] = {step_item, "before the device state"},
    [ST_LIST] = {step_list, "in the list of RAM"},
    [ST_RECORDS] = {step_record, "in the RAM"},
    [ST_FOOTER] = {step_footer, "in the RAM"},
    [ST_TAIL] = {step_tail, "in the device state"},
};

int stream_parser_feed(struct stream_parser *p, const uint8_t *data, size_t len,
                       size_t *used, struct qstill_error *err)
{
    struct view v = {data, len, false};

    while (!v.more)
        if (steps[p->state].step(p, &v, err) < 0)
            return err->code;
    *used = len - v.len;
    return 0;
}

int stream_parser_end(const struct stream_parser *p, size_t left,
                      struct qstill_error *err)
{
    if (p->state == ST_TAIL && left == 0)
        return 0;
    return err_set(err, QSTILL_E_CORRUPT, "the migration stream ends %s",
                   steps[p->state].where);
}
