/* SPDX-License-Identifier: MIT */
#include "heads.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "journal.h"
#include "launch_discard.h"
#include "name.h"
#include "qcow2/info.h"
#include "qmp/graph.h"
#include "session.h"

#define CHAIN_MAX 512

/* ------------------------------------------------------------------- nodes */

/* The file that a node, or the protocol node below it, has open. */
static const char *file_of(struct session *s, const struct qmp_node *n)
{
    const char *path = n->file ? n->file->path : n->path;

    return path && *path ? session_resolve(&s->rec.arena, &s->rec.launch, path)
                         : NULL;
}

/* The format node that shows this image, or NULL. */
static const struct qmp_node *find_image(struct session *s,
                                         const struct qmp_graph *g,
                                         const char *path, const char *format)
{
    for (size_t i = 0; i < g->count; i++) {
        const struct qmp_node *n = &g->nodes[i];
        const char *file;

        if (!n->file || n->filter || strcmp(n->driver, format) != 0)
            continue;
        file = file_of(s, n);
        if (file && session_same_file(file, path))
            return n;
    }
    return NULL;
}

int heads_check(struct session *s, const struct vm_disk *d,
                uint64_t virtual_size, struct qstill_error *err)
{
    const struct qmp_disk *q = session_live_disk(s, d);

    if (!q)
        return err_set(err, QSTILL_E_PRECONDITION, "disk %s is not plugged in",
                       d->name);
    if (!*q->qdev)
        return err_set(err, QSTILL_E_PRECONDITION, "no device uses disk %s",
                       d->name);
    /* a pflash reads its image once, when QEMU starts */
    if (strncmp(q->qdev, "/machine/system.flash", 21) == 0)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "disk %s holds the firmware's variables, which QEMU "
                       "reads when it starts",
                       d->name);
    if (strcmp(q->driver, d->head_format) != 0)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "disk %s has a node '%s' on top", d->name, q->driver);
    if (q->virtual_size != virtual_size)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "disk %s has %llu bytes, in the snapshot it has %llu",
                       d->name, (unsigned long long)q->virtual_size,
                       (unsigned long long)virtual_size);
    return 0;
}

/* -------------------------------------------------------------------- open */

/* One image of a chain, head first. */
struct link {
    const char *path;
    const char *format;
};

/* The image below, by the header; path NULL at the base. */
static int below(struct session *s, const struct link *l, struct link *out,
                 struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    enum qcow2_format format;

    *out = (struct link){NULL, NULL};
    if (qcow2_format_parse(l->format, &format, err) < 0)
        return err->code;
    if (format == QCOW2_FORMAT_RAW)
        return 0;
    if (qcow2_info_read(io_real(), AT_FDCWD, l->path, format, &info, err) < 0)
        return err->code;
    if (!info.header.has_backing)
        return 0;
    out->format = arena_strdup(&s->rec.arena, info.header.has_format
                                                  ? info.header.backing_format
                                                  : "raw");
    out->path = info.header.backing[0] == '/'
                    ? arena_strdup(&s->rec.arena, info.header.backing)
                    : arena_printf(&s->rec.arena, "%.*s%s",
                                   (int)(strrchr(l->path, '/') + 1 - l->path),
                                   l->path, info.header.backing);
    return out->path && out->format ? 0 : err_nomem(err);
}

/* The part of the chain that QEMU has not got open; *on is the node below it,
 * or NULL. */
static int missing_links(struct session *s, const struct qmp_graph *g,
                         struct link head, struct link *links, size_t *count,
                         const struct qmp_node **on, struct qstill_error *err)
{
    *count = 0;
    *on = NULL;
    for (struct link l = head; l.path;) {
        if (*count == CHAIN_MAX)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "the chain of %s is too long", head.path);
        *on = find_image(s, g, l.path, l.format);
        if (*on)
            return 0;
        links[*count] = l;
        if (below(s, &links[(*count)++], &l, err) < 0)
            return err->code;
    }
    return 0;
}

/* The file is read as the disk's was. (Native AIO goes with O_DIRECT only, and
 * QEMU would refuse the node.) */
static const char *aio_like(struct session *s, const struct vm_disk *d,
                            bool direct)
{
    const char *aio = launch_aio(s, d);

    return aio && strcmp(aio, "native") == 0 && !direct ? NULL : aio;
}

/* NULL where QEMU's default does: an explicit "ignore" would also keep the
 * format's own discards from the file. */
static const char *discard_like(struct session *s, const struct vm_disk *d)
{
    const char *discard = launch_discard(s, d);

    return discard && strcmp(discard, "unmap") == 0 ? discard : NULL;
}

/* As the command line says, else as the node has it. ("unmap" goes with
 * discards that are handed down only.) */
static const char *detect_zeroes_like(struct session *s,
                                      const struct vm_disk *d,
                                      const struct qmp_node *like)
{
    const char *word = launch_detect_zeroes(s, d);

    if (!word && like && *like->detect_zeroes)
        word = like->detect_zeroes;
    return word && strcmp(word, "unmap") == 0 && !discard_like(s, d) ? "on"
                                                                     : word;
}

/* With the options of the disk. */
static int open_chain(struct session *s, const struct qmp_graph *g,
                      const struct vm_disk *d, struct link head,
                      const char *kind, size_t number, const char *tag,
                      struct qstill_error *err)
{
    struct link *links = arena_array(&s->rec.arena, CHAIN_MAX, sizeof(*links));
    const struct qmp_disk *q = session_live_disk(s, d);
    const struct qmp_node *like = q ? qmp_graph_find(g, q->node) : NULL;
    const struct qmp_node *on;
    const char *backing;
    size_t n;

    if (!links)
        return err_nomem(err);
    if (missing_links(s, g, head, links, &n, &on, err) < 0)
        return err->code;
    backing = on ? on->name : NULL;
    while (n-- > 0) {
        char *name =
            n == 0 ? arena_printf(&s->rec.arena, "%s%zu-%s", kind, number, tag)
                   : arena_printf(&s->rec.arena, "%s%zu.%zu-%s", kind, number,
                                  n, tag);
        struct qmp_blockdev b = {
            .node = name,
            .driver = links[n].format,
            .path = links[n].path,
            .backing = backing,
            .read_only = n > 0,
            .cache_direct = like && like->cache_direct,
            .cache_no_flush = like && like->cache_no_flush,
            .aio = aio_like(s, d, like && like->cache_direct),
            .discard = n == 0 ? discard_like(s, d) : NULL,
            .detect_zeroes = n == 0 ? detect_zeroes_like(s, d, like) : NULL,
        };

        if (!name)
            return err_nomem(err);
        if (qmp_blockdev_add(s->qmp, &b, err) < 0)
            return err_wrap(err, "opening %s in QEMU", links[n].path);
        backing = name;
    }
    return 0;
}

static struct link link_of(const struct journal_disk *jd,
                           enum heads_which which)
{
    return which == HEADS_OLD ? (struct link){jd->old_path, jd->old_format}
                              : (struct link){jd->new_path, jd->new_format};
}

static int missing_disk(const struct journal_disk *jd, struct qstill_error *err)
{
    return err_set(err, QSTILL_E_PRECONDITION, "disk %s is gone", jd->disk);
}

static int open_heads(struct session *s, const struct journal *j,
                      enum heads_which which, const char *tag,
                      struct qstill_error *err)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;

    if (qmp_graph_read(s->qmp, &g, err) < 0)
        return err->code;
    for (size_t i = 0; i < j->disk_count; i++) {
        const struct vm_disk *d = vmrecord_disk(&s->rec, j->disks[i].disk);

        if (!d)
            return missing_disk(&j->disks[i], err);
        if (open_chain(s, &g, d, link_of(&j->disks[i], which),
                       which == HEADS_OLD ? "qo" : "qs", i, tag, err) < 0)
            return err->code;
    }
    return 0;
}

int heads_open(struct session *s, const struct journal *j, const char *tag,
               struct qstill_error *err)
{
    if (session_wake_images(s, err) < 0)
        return err->code;
    return open_heads(s, j, HEADS_NEW, tag, err);
}

/* --------------------------------------------------------------------- put */

/* Under the throttle nodes, when there are any: they belong to the disk. */
static int put_node(struct session *s, const struct qmp_graph *g,
                    const struct qmp_disk *q, const char *node,
                    struct qstill_error *err)
{
    const struct qmp_node *filter =
        q->filter ? qmp_graph_find(g, q->filter) : NULL;

    return filter ? qmp_filter_reopen(s->qmp, filter, node, err)
                  : qmp_set_drive(s->qmp, q->qdev, node, err);
}

/* The guest stands, so the nodes of an iothread's disk are in QEMU's main
 * thread, as those are that were opened now. (While it runs, QEMU 7.2 refuses a
 * node of another thread, and 10.0 does not survive it.) */
static int put_one(struct session *s, const struct qmp_graph *g,
                   const struct journal_disk *jd, enum heads_which which,
                   struct qstill_error *err)
{
    const struct vm_disk *d = vmrecord_disk(&s->rec, jd->disk);
    const struct qmp_disk *q = d ? session_live_disk(s, d) : NULL;
    struct link l = link_of(jd, which);
    const char *live = d ? session_live_path(s, d) : NULL;
    const struct qmp_node *n;

    if (!q)
        return missing_disk(jd, err);
    if (live && session_same_file(live, l.path))
        return 0;
    n = find_image(s, g, l.path, l.format);
    if (!n)
        return err_set(err, QSTILL_E_FAILED, "QEMU has not opened %s", l.path);
    if (put_node(s, g, q, n->name, err) < 0)
        return err_wrap(err, "disk %s", jd->disk);
    return 0;
}

int heads_put(struct session *s, const struct journal *j,
              enum heads_which which, const char *tag, struct qstill_error *err)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;

    /* what QEMU has now: who was here before may not have heard its answer */
    if (session_refresh(s, err) < 0 ||
        (which == HEADS_OLD && open_heads(s, j, HEADS_OLD, tag, err) < 0) ||
        qmp_graph_read(s->qmp, &g, err) < 0)
        return err->code;
    for (size_t i = 0; i < j->disk_count; i++)
        if (put_one(s, &g, &j->disks[i], which, err) < 0)
            return err->code;
    if (session_refresh(s, err) < 0)
        return err->code;
    return heads_verify(s, j, which, err);
}

int heads_verify(struct session *s, const struct journal *j,
                 enum heads_which which, struct qstill_error *err)
{
    for (size_t i = 0; i < j->disk_count; i++) {
        const struct vm_disk *d = vmrecord_disk(&s->rec, j->disks[i].disk);
        const char *live = d ? session_live_path(s, d) : NULL;
        const char *path = link_of(&j->disks[i], which).path;

        if (live && !session_same_file(live, path))
            return err_set(err, QSTILL_E_FAILED,
                           "disk %s is on %s in QEMU, and not on %s",
                           j->disks[i].disk, live, path);
    }
    return 0;
}

/* ------------------------------------------------------------------- sweep */

static bool is_in_journal(const struct journal *j, const char *path)
{
    for (size_t i = 0; j && i < j->disk_count; i++)
        if (strcmp(j->disks[i].old_path, path) == 0 ||
            strcmp(j->disks[i].new_path, path) == 0)
            return true;
    return false;
}

static bool is_ours(struct session *s, const struct journal *j,
                    const char *path)
{
    if (is_in_journal(j, path) || tree_owner(&s->tree, path))
        return true;
    for (size_t i = 0; i < s->rec.disk_count; i++)
        if (strcmp(s->rec.disks[i].head_path, path) == 0)
            return true;
    for (size_t i = 0; i < s->rec.hidden_count; i++)
        if (strcmp(s->rec.hidden[i].path, path) == 0)
            return true;
    for (size_t i = 0; i < s->rec.trash_count; i++)
        for (size_t k = 0; k < s->rec.trash[i].layer_count; k++)
            if (strcmp(s->rec.trash[i].layers[k].path, path) == 0)
                return true;
    return false;
}

/* Named by us (create, heads_open, liveswap): "qs0-ID", "qo1.2-ID", "qsm-ID".
 * Its file may be gone already, and forgotten. */
static bool has_our_name(const char *node)
{
    size_t n;

    if (node[0] != 'q' || (node[1] != 's' && node[1] != 'o'))
        return false;
    n = 2 + strspn(node + 2, "0123456789.m");
    return node[n] == '-' && strlen(node + n + 1) == ID_LEN &&
           strspn(node + n + 1, "abcdefghijklmnopqrstuvwxyz0123456789") ==
               ID_LEN;
}

/* Marks what the disks' chains hold. */
static void mark_used(struct session *s, const struct qmp_graph *g, bool *used)
{
    for (size_t i = 0; i < s->live.count; i++) {
        const struct qmp_node *n = qmp_graph_find(g, s->live.items[i].root);

        for (; n && !used[n - g->nodes]; n = n->below) {
            used[n - g->nodes] = true;
            if (n->file)
                used[n->file - g->nodes] = true;
        }
    }
}

/* What another of the unused nodes holds. */
static void mark_held(const struct qmp_graph *g, const bool *used, bool *held)
{
    for (size_t i = 0; i < g->count; i++) {
        const struct qmp_node *n = &g->nodes[i];

        if (used[i])
            continue;
        if (n->below)
            held[n->below - g->nodes] = true;
        if (n->file)
            held[n->file - g->nodes] = true;
    }
}

/* Nodes that QEMU named are not its monitor's, and go with who holds them. */
static bool may_go(struct session *s, const struct journal *j,
                   const struct qmp_node *n)
{
    const char *file = n->name_auto ? NULL : file_of(s, n);

    return file && (has_our_name(n->name) || is_ours(s, j, file));
}

/* Held by the monitor alone, or by something else: QEMU knows. */
static int try_del(struct session *s, const struct journal *j,
                   const struct qmp_node *n, bool *some,
                   struct qstill_error *err)
{
    struct qstill_error why = {0};

    if (!may_go(s, j, n))
        return 0;
    if (qmp_blockdev_del(s->qmp, n->name, QMP_MISSING_UNASKED, &why) == 0)
        *some = true;
    else if (why.code == QSTILL_E_UNREACHABLE)
        return (*err = why).code;
    return 0;
}

/* Each chain from its top: a node keeps what is below it. */
static int sweep_once(struct session *s, const struct journal *j, bool *some,
                      struct qstill_error *err)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    CLEANUP(freep) bool *used = NULL;
    CLEANUP(freep) bool *held = NULL;

    if (qmp_graph_read(s->qmp, &g, err) < 0)
        return err->code;
    used = calloc(g.count + 1, sizeof(*used));
    held = calloc(g.count + 1, sizeof(*held));
    if (!used || !held)
        return err_nomem(err);
    mark_used(s, &g, used);
    mark_held(&g, used, held);
    for (size_t i = 0; i < g.count; i++) {
        const struct qmp_node *n = held[i] ? NULL : &g.nodes[i];

        for (; n && !used[n - g.nodes]; n = n->below) {
            used[n - g.nodes] = true;
            if (try_del(s, j, n, some, err) < 0 ||
                (n->file && !used[n->file - g.nodes] &&
                 try_del(s, j, n->file, some, err) < 0))
                return err->code;
        }
    }
    return 0;
}

int heads_sweep(struct session *s, const struct journal *j,
                struct qstill_error *err)
{
    bool some = true;

    if (session_refresh(s, err) < 0)
        return err->code;
    for (size_t rounds = 0; some && rounds < CHAIN_MAX; rounds++) {
        some = false;
        if (sweep_once(s, j, &some, err) < 0)
            return err->code;
    }
    return 0;
}
