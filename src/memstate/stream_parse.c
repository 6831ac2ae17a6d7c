/* SPDX-License-Identifier: MIT */
/*
 * A state machine over whole elements. Happy path:
 *   header -> configuration -> subsections -> item (RAM START) -> list ->
 *   records -> footer -> item (PART ...) -> ... -> tail
 * Each step looks at what lies in front of it and either takes one element or
 * asks for more bytes; nothing is ever taken in part.
 */
#include "stream_parse_impl.h"

#include <string.h>

#include "base/bytes.h"
#include "memstate/stream.h"

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

int view_str8(struct view *v, size_t at, char out[STREAM_NAME_MAX + 1],
              size_t *end, struct qstill_error *err)
{
    size_t len;

    if (!view_has(v, at + 1))
        return 0;
    len = v->data[at];
    if (!view_has(v, at + 1 + len))
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
    if (!view_has(v, 8))
        return 0;
    if (get_be32(v->data) != STREAM_MAGIC)
        return err_set(err, QSTILL_E_CORRUPT,
                       "this is no migration stream: it begins with %08x",
                       get_be32(v->data));
    if (get_be32(v->data + 4) != STREAM_VERSION)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the migration stream has version %u, not %u",
                       get_be32(v->data + 4), STREAM_VERSION);
    view_take(v, 8);
    p->state = ST_CONFIG;
    return 0;
}

static int step_config(struct stream_parser *p, struct view *v,
                       struct qstill_error *err)
{
    uint32_t len;

    if (!view_has(v, 1))
        return 0;
    if (v->data[0] != STREAM_CONFIGURATION)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the migration stream has no configuration section");
    if (!view_has(v, 5))
        return 0;
    len = get_be32(v->data + 1);
    if (len == 0 || len > STREAM_NAME_MAX)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream's machine type has a name of %u bytes", len);
    if (!view_has(v, 5 + len))
        return 0;
    for (uint32_t i = 0; i < len; i++)
        if (v->data[5 + i] <= 0x20 || v->data[5 + i] >= 0x7f)
            return err_set(err, QSTILL_E_CORRUPT,
                           "the stream's machine type holds byte %02x",
                           v->data[5 + i]);
    memcpy(p->machine, v->data + 5, len);
    view_take(v, 5 + len);
    p->state = ST_SUBSECTION;
    return 0;
}

static int check_page_bits(struct view *v, size_t *at, struct qstill_error *err)
{
    if (!view_has(v, *at + 4))
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
    if (view_has(v, *at + 16))
        *at += 16;
    return 0;
}

/* Those listed here change what the stream carries: all are refused. */
static int check_capabilities(struct view *v, size_t *at,
                              struct qstill_error *err)
{
    char name[STREAM_NAME_MAX + 1];
    size_t end = 0;

    if (!view_has(v, *at + 4))
        return 0;
    if (get_be32(v->data + *at) == 0) {
        *at += 4;
        return 0;
    }
    if (view_str8(v, *at + 4, name, &end, err) < 0)
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

    if (!view_has(v, 1))
        return 0;
    if (v->data[0] != STREAM_SUBSECTION) {
        p->state = ST_ITEM;
        return 0;
    }
    if (view_str8(v, 1, name, &at, err) < 0)
        return err->code;
    if (v->more || !view_has(v, at + 4))
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
    view_take(v, at);
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

    if (view_str8(v, 5, name, &at, err) < 0)
        return err->code;
    if (v->more || !view_has(v, at + 8))
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
    view_take(v, at + 8);
    p->state = ST_RECORDS;
    return 0;
}

static int step_part(struct stream_parser *p, struct view *v,
                     struct qstill_error *err)
{
    bool end;

    if (!view_has(v, 5))
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
    view_take(v, 5);
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

    if (!view_has(v, 5))
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
    if (view_has(v, 5 + len))
        view_take(v, 5 + len);
    return 0;
}

static int step_item(struct stream_parser *p, struct view *v,
                     struct qstill_error *err)
{
    if (!view_has(v, 1))
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
    if (!view_has(v, 1))
        return 0;
    /* Footers cannot be negotiated: the first section shows them. */
    if (p->footers == FOOTERS_UNKNOWN)
        p->footers = v->data[0] == STREAM_FOOTER ? FOOTERS_YES : FOOTERS_NO;
    if (p->footers == FOOTERS_NO) {
        p->state = ST_ITEM;
        return 0;
    }
    if (!view_has(v, 5))
        return 0;
    if (v->data[0] != STREAM_FOOTER || get_be32(v->data + 1) != p->ram_id)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream's RAM section ends without its footer");
    view_take(v, 5);
    p->state = ST_ITEM;
    return 0;
}

static int step_tail(struct stream_parser *p, struct view *v,
                     struct qstill_error *err)
{
    const uint8_t *data = v->data;
    size_t len = v->len;

    view_take(v, len);
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
    [ST_LIST] = {stream_step_list, "in the list of RAM"},
    [ST_RECORDS] = {stream_step_record, "in the RAM"},
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
