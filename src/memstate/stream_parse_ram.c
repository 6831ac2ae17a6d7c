/* SPDX-License-Identifier: MIT */
/* The RAM section: the list of blocks, and the records of pages. */
#include "stream_parse_impl.h"

#include <string.h>

#include "base/bytes.h"
#include "memstate/stream.h"

/* block_count when there is none. */
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
    if (size > p->list_left || size % STREAM_PAGE != 0)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream lists RAM block '%s' with %llu bytes, %llu "
                       "are left of the total",
                       id, (unsigned long long)size,
                       (unsigned long long)p->list_left);
    if (p->block_count == STREAM_BLOCKS_MAX)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream lists more than %u RAM blocks",
                       STREAM_BLOCKS_MAX);
    copy = strdup(id);
    if (!copy)
        return err_nomem(err);
    p->blocks[p->block_count] = (struct stream_block){copy, size};
    p->list_left -= size;
    p->block_count++;
    p->current = p->block_count;
    return p->events->block(p->user, p->block_count - 1, id, size, err);
}

/* str8 id be64 used_length, until the total is reached */
int stream_step_list(struct stream_parser *p, struct view *v,
                     struct qstill_error *err)
{
    char id[STREAM_NAME_MAX + 1];
    size_t at = 0;

    if (view_str8(v, 0, id, &at, err) < 0)
        return err->code;
    if (v->more || !view_has(v, at + 8))
        return 0;
    if (add_block(p, id, get_be64(v->data + at), err) < 0)
        return err->code;
    view_take(v, at + 8);
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
    p->blocks = calloc(STREAM_BLOCKS_MAX, sizeof(*p->blocks));
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
    if (view_str8(v, 8, id, at, err) < 0)
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
    size_t body = zero ? 1 : STREAM_PAGE;
    const uint8_t *data;
    size_t at = 0;

    if (!p->have_list)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the stream has a page in front of the list of RAM");
    if (record_block(p, v, word, &at, err) < 0)
        return err->code;
    if (v->more || !view_has(v, at + body))
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
    view_take(v, at + body);
    if (zero)
        return p->events->zero(p->user, p->current, offset, err);
    return p->events->page(p->user, p->current, offset, data, err);
}

int stream_step_record(struct stream_parser *p, struct view *v,
                       struct qstill_error *err)
{
    uint64_t word;

    if (!view_has(v, 8))
        return 0;
    word = get_be64(v->data);
    switch (word & STREAM_RAM_FLAGS) {
    case STREAM_RAM_PAGE:
    case STREAM_RAM_PAGE | STREAM_RAM_CONTINUE:
    case STREAM_RAM_ZERO:
    case STREAM_RAM_ZERO | STREAM_RAM_CONTINUE:
        return step_page(p, v, word, err);
    case STREAM_RAM_MEM_SIZE:
        view_take(v, 8);
        return begin_list(p, word & ~(uint64_t)STREAM_RAM_FLAGS, err);
    case STREAM_RAM_EOS:
        if (!p->have_list)
            return err_set(err, QSTILL_E_CORRUPT,
                           "the stream's RAM begins without its list");
        view_take(v, 8);
        p->state = ST_FOOTER;
        return 0;
    default:
        return refuse_flags(word, err);
    }
}
