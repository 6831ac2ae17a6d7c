/* SPDX-License-Identifier: MIT */
/* Shared by stream_parse.c and stream_parse_ram.c. */
#ifndef QSTILL_MEMSTATE_STREAM_PARSE_IMPL_H
#define QSTILL_MEMSTATE_STREAM_PARSE_IMPL_H

#include "memstate/stream_parse.h"

#define STREAM_PAGE 4096u
/* As RAMSET_BLOCKS_MAX, so that a hostile list stays small here too. */
#define STREAM_BLOCKS_MAX 1024u

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

struct stream_block {
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
    struct stream_block *blocks;
    unsigned block_count;
    unsigned current; /* of the last record; block_count: none yet */
};

/* What lies in front of a step; `more` asks for further bytes. */
struct view {
    const uint8_t *data;
    size_t len;
    bool more;
};

static inline bool view_has(struct view *v, size_t len)
{
    v->more = v->len < len;
    return !v->more;
}

static inline void view_take(struct view *v, size_t len)
{
    v->data += len;
    v->len -= len;
}

/*
 * A str8 at v->data + at, as a C string: text without NUL or control bytes.
 * *end is set behind it; asks for more when it is not all there.
 */
int view_str8(struct view *v, size_t at, char out[STREAM_NAME_MAX + 1],
              size_t *end, struct qstill_error *err);

/* The steps of the RAM section (stream_parse_ram.c). */
int stream_step_list(struct stream_parser *p, struct view *v,
                     struct qstill_error *err);
int stream_step_record(struct stream_parser *p, struct view *v,
                       struct qstill_error *err);

#endif
