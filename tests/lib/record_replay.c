/* SPDX-License-Identifier: MIT */
/*
 * The cut: which operations survive, then a model of the directory in memory
 * with those applied, then real files of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "memio_dir.h"
#include "record_impl.h"

#define SECTOR 512

struct content {
    uint8_t *data;
    size_t len;
    size_t cap;
    struct timespec mtime;
};

struct model {
    const struct record *r;
    struct content *files; /* by node */
    struct record_name *names;
    size_t name_count;
    uint64_t coins;
};

static bool coin(struct model *m)
{
    /* splitmix64 */
    uint64_t z = m->coins += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (z ^ z >> 31) >> 63;
}

static uint64_t below(struct model *m, uint64_t limit)
{
    uint64_t v = 0;

    for (int i = 0; i < 40; i++)
        v = v << 1 | coin(m);
    return v % limit;
}

static void set_size(struct content *c, uint64_t size)
{
    if (size > c->cap) {
        c->cap = size + size / 4 + 4096;
        c->data = realloc(c->data, c->cap);
        if (!c->data)
            memio_die("replay: out of memory");
    }
    if (size > c->len)
        memset(c->data + c->len, 0, size - c->len);
    c->len = size;
}

static void put(struct content *c, uint64_t off, const uint8_t *data,
                uint64_t len)
{
    if (off + len > c->len)
        set_size(c, off + len);
    if (len > 0)
        memcpy(c->data + off, data, len);
}

/* Of a torn write each sector, by the file's own sector grid, has its coin. */
static void put_torn(struct model *m, struct content *c,
                     const struct record_op *op)
{
    uint64_t end = op->off + op->len;

    for (uint64_t at = op->off; at < end;) {
        uint64_t next = min_u64((at / SECTOR + 1) * SECTOR, end);

        if (coin(m))
            put(c, at, op->data + (at - op->off), next - at);
        at = next;
    }
}

static void apply_file(struct model *m, const struct record_op *op, bool torn)
{
    struct content *c = &m->files[op->node];

    switch (op->type) {
    case REC_WRITE:
        if (torn)
            put_torn(m, c, op);
        else
            put(c, op->off, op->data, op->len);
        break;
    case REC_SIZE:
        set_size(c, op->off);
        break;
    case REC_GROW:
        if (op->off + op->len > c->len)
            set_size(c, op->off + op->len);
        break;
    case REC_PUNCH:
        if (op->off < c->len)
            memset(c->data + op->off, 0, min_u64(op->len, c->len - op->off));
        break;
    default:
        return;
    }
    c->mtime = op->mtime;
}

static struct record_name *find_name(struct model *m, const char *name)
{
    for (size_t i = 0; i < m->name_count; i++) {
        if (m->names[i].node >= 0 && strcmp(m->names[i].name, name) == 0)
            return &m->names[i];
    }
    return NULL;
}

static void bind_name(struct model *m, char *name, int node)
{
    struct record_name *n = find_name(m, name);

    if (!n) {
        n = &m->names[m->name_count++];
        n->name = name;
    }
    n->node = node;
}

static void apply_name(struct model *m, const struct record_op *op)
{
    struct record_name *from = find_name(m, op->name);
    int node;

    if (op->type == REC_CREATE) {
        bind_name(m, op->name, op->node);
        return;
    }
    if (!from)
        memio_die("replay: %s is not there", op->name);
    node = from->node;
    if (op->type == REC_LINK) {
        bind_name(m, op->to, node);
        return;
    }
    from->node = -1;
    if (op->type == REC_UNLINK)
        return;
    if (op->flags & RENAME_EXCHANGE) {
        struct record_name *to = find_name(m, op->to);

        bind_name(m, op->name, to->node);
    }
    bind_name(m, op->to, node);
}

static bool is_name_op(const struct record_op *op)
{
    return op->type == REC_CREATE || op->type == REC_RENAME ||
           op->type == REC_LINK || op->type == REC_UNLINK;
}

static bool is_content(const struct record_op *op)
{
    return op->type == REC_WRITE || op->type == REC_SIZE ||
           op->type == REC_GROW || op->type == REC_PUNCH;
}

/* Whether `name` lies right in the directory `dir` ("" is the top one). */
static bool lies_in(const char *name, const char *dir)
{
    const char *slash = strrchr(name, '/');
    size_t len = slash ? (size_t)(slash - name) : 0;

    return strlen(dir) == len && strncmp(name, dir, len) == 0;
}

/* Operations up to here are durable names: the last one of a directory that
 * was synced afterwards, and by the journal's order all before it. */
static size_t durable_names(const struct record *r, size_t count)
{
    for (size_t i = count; i-- > 0;) {
        const struct record_op *op = &r->ops[i];

        for (size_t k = i + 1; is_name_op(op) && k < count; k++) {
            const struct record_op *s = &r->ops[k];

            if (s->type == REC_SYNC_DIR &&
                (lies_in(op->name, s->name) ||
                 (op->to && lies_in(op->to, s->name))))
                return i + 1;
        }
    }
    return 0;
}

static bool *durable_content(const struct record *r, size_t count)
{
    bool *durable = calloc(count + 1, sizeof(*durable));
    bool *synced = calloc(r->node_count + 1, sizeof(*synced));

    if (!durable || !synced)
        memio_die("replay: out of memory");
    for (size_t i = count; i-- > 0;) {
        if (r->ops[i].type == REC_SYNC)
            synced[r->ops[i].node] = true;
        else if (is_content(&r->ops[i]))
            durable[i] = synced[r->ops[i].node];
    }
    free(synced);
    return durable;
}

/* The one operation that RECORD_ONE_* treats otherwise. */
static size_t pick_one(struct model *m, const bool *durable, size_t count)
{
    size_t loose = 0, nth;

    for (size_t i = 0; i < count; i++)
        loose += is_content(&m->r->ops[i]) && !durable[i];
    if (loose == 0)
        return count;
    nth = below(m, loose);
    for (size_t i = 0; i < count; i++) {
        if (is_content(&m->r->ops[i]) && !durable[i] && nth-- == 0)
            return i;
    }
    return count;
}

static void apply(struct model *m, size_t count, enum record_loss loss)
{
    const struct record *r = m->r;
    bool *durable = durable_content(r, count);
    size_t names = durable_names(r, count);
    size_t one = pick_one(m, durable, count);

    if (loss == RECORD_KEEP_ALL)
        names = count;
    else if (loss != RECORD_LOSE_ALL)
        names += below(m, count - names + 1);
    for (size_t i = 0; i < count; i++) {
        const struct record_op *op = &r->ops[i];
        bool keep = durable[i] || loss == RECORD_KEEP_ALL ||
                    loss == RECORD_TORN || (loss == RECORD_SUBSET && coin(m)) ||
                    (loss == RECORD_ONE_LOST && i != one) ||
                    (loss == RECORD_ONE_KEPT && i == one);

        if (is_name_op(op) && i < names)
            apply_name(m, op);
        else if (is_content(op) && keep)
            apply_file(m, op, loss == RECORD_TORN && !durable[i]);
    }
    free(durable);
}

static void model_init(struct model *m, const struct record *r, uint64_t seed)
{
    *m = (struct model){.r = r, .coins = seed};
    m->files = calloc(r->node_count + 1, sizeof(*m->files));
    m->names = calloc(r->name_count + r->op_count * 2 + 1, sizeof(*m->names));
    if (!m->files || !m->names)
        memio_die("replay: out of memory");
    for (size_t i = 0; i < r->node_count; i++) {
        m->files[i].mtime = r->nodes[i].mtime;
        if (r->nodes[i].start)
            put(&m->files[i], 0, r->nodes[i].start, r->nodes[i].start_len);
    }
    memcpy(m->names, r->names, r->name_count * sizeof(*m->names));
    m->name_count = r->name_count;
}

static void model_fini(struct model *m)
{
    for (size_t i = 0; i < m->r->node_count; i++)
        free(m->files[i].data);
    free(m->files);
    free(m->names);
}

static void remove_name(void *user, const char *name)
{
    const struct record *r = user;
    const char *path = memio_path(r->dir, name);
    struct stat st;
    int node;

    if (stat(path, &st) < 0)
        memio_die("replay: cannot stat %s", name);
    node = record_find_node(r, &st);
    if (node < 0 || st.st_nlink > 1 ? unlink(path)
                                    : rename(path, record_node_path(r, node)))
        memio_die("replay: cannot remove %s", name);
}

/* A node has one path where it is kept: its second name is made of the first.
 */
static bool put_second(const struct record *r, const struct model *m, size_t i)
{
    for (size_t k = 0; k < i; k++) {
        if (m->names[k].node != m->names[i].node)
            continue;
        if (link(memio_path(r->dir, m->names[k].name),
                 memio_path(r->dir, m->names[i].name)) < 0)
            memio_die("replay: cannot make %s: %s", m->names[i].name,
                      strerror(errno));
        return true;
    }
    return false;
}

static void put_file(const struct record *r, const struct content *c, int node,
                     const char *name)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, c->mtime};
    const char *path = record_node_path(r, node);

    if (access(path, F_OK) < 0)
        memio_die("replay: %s was removed past the tables", name);
    memio_put(path, c->data, c->len);
    if (utimensat(AT_FDCWD, path, times, 0) < 0 ||
        rename(path, memio_path(r->dir, name)) < 0)
        memio_die("replay: cannot make %s: %s", name, strerror(errno));
}

void record_replay(const struct record *r, size_t count, enum record_loss loss,
                   uint64_t seed)
{
    struct model m;

    model_init(&m, r, seed);
    apply(&m, min_u64(count, r->op_count), loss);
    memio_each(r->dir, remove_name, (void *)(uintptr_t)r);
    for (size_t i = 0; i < m.name_count; i++) {
        if (m.names[i].node >= 0 && !put_second(r, &m, i))
            put_file(r, &m.files[m.names[i].node], m.names[i].node,
                     m.names[i].name);
    }
    model_fini(&m);
}

/* ------------------------------------------------------------ inspection */

struct compare {
    struct model *m;
    size_t seen;
    char *text;
    size_t room;
};

static void compare_file(void *user, const char *name)
{
    struct compare *c = user;
    struct record_name *n = find_name(c->m, name);
    size_t len;
    uint8_t *data = memio_get(memio_path(c->m->r->dir, name), &len);
    const struct content *want = n ? &c->m->files[n->node] : NULL;

    c->seen++;
    if (!want)
        snprintf(c->text, c->room, "%s was made past the table", name);
    else if (want->len != len)
        snprintf(c->text, c->room, "%s has %zu bytes, %zu were recorded", name,
                 len, want->len);
    else if (len && memcmp(want->data, data, len) != 0)
        snprintf(c->text, c->room, "%s was written past the table", name);
    free(data);
}

const char *record_bypassed(const struct record *r)
{
    static char text[512];
    struct model m;
    struct compare c = {.m = &m, .text = text, .room = sizeof(text)};
    size_t alive = 0;

    text[0] = '\0';
    model_init(&m, r, 0);
    apply(&m, r->op_count, RECORD_KEEP_ALL);
    memio_each(r->dir, compare_file, &c);
    for (size_t i = 0; i < m.name_count; i++)
        alive += m.names[i].node >= 0;
    if (!text[0] && alive != c.seen)
        snprintf(text, sizeof(text), "%zu files there, %zu were recorded",
                 c.seen, alive);
    model_fini(&m);
    return text[0] ? text : NULL;
}

bool record_is_sync(const struct record *r, size_t index)
{
    return r->ops[index].type == REC_SYNC || r->ops[index].type == REC_SYNC_DIR;
}

/* The last name the inode had before the operation. */
static const char *name_of(const struct record *r, int node, size_t index)
{
    const char *name = "?";

    for (size_t i = 0; i < r->name_count; i++) {
        if (r->names[i].node == node)
            name = r->names[i].name;
    }
    for (size_t i = 0; i < index; i++) {
        const struct record_op *op = &r->ops[i];

        if (op->type == REC_CREATE && op->node == node)
            name = op->name;
        else if (op->type == REC_RENAME && strcmp(op->name, name) == 0)
            name = op->to;
    }
    return name;
}

const char *record_describe(const struct record *r, size_t index)
{
    static const char *const words[] = {
        [REC_WRITE] = "write",    [REC_SIZE] = "truncate",
        [REC_GROW] = "allocate",  [REC_PUNCH] = "punch",
        [REC_LINK] = "link",      [REC_SYNC] = "sync",
        [REC_CREATE] = "create",  [REC_RENAME] = "rename",
        [REC_UNLINK] = "unlink",  [REC_SYNC_DIR] = "sync dir",
        [REC_ATTR] = "attribute",
    };
    static char text[1024];
    const struct record_op *op = &r->ops[index];

    if (op->name)
        snprintf(text, sizeof(text), "%s %s%s%s", words[op->type], op->name,
                 op->to ? " to " : "", op->to ? op->to : "");
    else
        snprintf(text, sizeof(text), "%s %s %llu+%llu", words[op->type],
                 name_of(r, op->node, index), (unsigned long long)op->off,
                 (unsigned long long)op->len);
    return text;
}
