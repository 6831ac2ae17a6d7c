/* SPDX-License-Identifier: MIT */
#include "liveswap.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "collapse_impl.h"
#include "launch_discard.h"
#include "layer_file.h"
#include "layer_name.h"
#include "livechain.h"
#include "name.h"
#include "qcow2/info.h"
#include "qcow2/lock.h"
#include "qcow2/merge.h"
#include "qcow2/repoint.h"
#include "qmp/block.h"
#include "qmp/graph.h"

/* Nodes of ours: overlays of create, and merged files. QEMU gives them the
 * options that we know; a user's own may have others, which no query tells. */
#define OUR_NODES "qs"
#define NEW_NODES "qsm-"

bool liveswap_possible(const struct layer *layer)
{
    const struct layer *above = layer->above;

    return above && above->node && layer_is_qcow2(above->format);
}

/* ---------------------------------------------------------------- QEMU's part
 */

static int add_node(struct session *s, const struct vm_disk *d,
                    const struct qmp_node *old, const struct qmp_node *below,
                    const char *path, const char *node,
                    struct qstill_error *err)
{
    const char *discard = launch_discard(s, d);
    struct qmp_blockdev b = {.node = node,
                             .driver = "qcow2",
                             .path = path,
                             .backing = below ? below->name : NULL,
                             .backing_null = below == NULL,
                             .read_only = true,
                             .cache_direct = old->cache_direct,
                             .cache_no_flush = old->cache_no_flush};

    /* No detect-zeroes, which a layer that was a head may have: nobody writes
     * here. When the heads above are folded into it, it is the head, and gets
     * it then; discard cannot be had later. */
    if (discard && strcmp(discard, "unmap") == 0)
        b.discard = discard;
    return qmp_blockdev_add(s->qmp, &b, err);
}

/* By QEMU's stable command where all options are known. `backing` may be NULL:
 * as it is. */
static int reopen_above(struct session *s, const struct vm_disk *d,
                        const struct journal *j, const struct qmp_node *above,
                        const char *backing, bool read_only,
                        struct qstill_error *err)
{
    const char *discard = launch_discard(s, d);
    struct qmp_blockdev b = {.node = above->name,
                             .driver = "qcow2",
                             .file_node = above->file->name,
                             .backing = backing ? backing : above->below->name,
                             .read_only = read_only,
                             .cache_direct = above->cache_direct,
                             .cache_no_flush = above->cache_no_flush,
                             .discard = discard,
                             .detect_zeroes = above->detect_zeroes};

    if (strncmp(above->name, OUR_NODES, strlen(OUR_NODES)) == 0 &&
        (discard || !session_same_file(d->head_path, j->swap_above)))
        return qmp_blockdev_reopen(s->qmp, &b, err);
    return qmp_node_reopen(s->qmp, above->name, backing, read_only, err);
}

/* The header of the layer above is to be written. While somebody else reads
 * that file QEMU refuses, and it should before anything is done: so the node is
 * open for writing from there to the end, and nobody comes in between. A head
 * is anyway. */
static int open_above(struct session *s, struct qmp_graph *g,
                      const struct vm_disk *d, const struct journal *j,
                      bool read_only, struct qstill_error *err)
{
    const struct qmp_node *above;

    if (session_same_file(d->head_path, j->swap_above))
        return 0;
    above = livechain_node(s, g, d, j->swap_above);
    if (!above || !above->file || !above->below ||
        above->read_only == read_only)
        return 0; /* another chain than before has its own words */
    if (reopen_above(s, d, j, above, NULL, read_only, err) == 0)
        g->nodes[above - g->nodes].read_only = read_only;
    return err->code;
}

/* What QEMU has below the layer above now. */
static const struct qmp_node *live_below(struct session *s,
                                         const struct qmp_graph *g,
                                         const struct vm_disk *d,
                                         const char *above)
{
    const struct qmp_node *n = livechain_node(s, g, d, above);

    return n ? n->below : NULL;
}

static bool node_reads(struct session *s, const struct qmp_node *n,
                       const char *path)
{
    const char *name = n && n->file ? n->file->path : "";
    const char *abs =
        *name ? session_resolve(&s->rec.arena, &s->rec.launch, name) : NULL;

    return abs && strcmp(abs, path) == 0;
}

/* What QEMU refuses here it has not begun: the layer can wait. */
static int swap_nodes(struct collapse *c, const struct qmp_graph *g,
                      struct vm_disk *d, const struct step *st,
                      const char *node, struct qstill_error *err)
{
    struct session *s = c->s;
    const struct qmp_node *above = livechain_node(s, g, d, c->j->swap_above);
    const struct qmp_node *old = livechain_node(s, g, d, st->child->path);
    const struct qmp_node *last = livechain_node(s, g, d, st->last->path);

    if (!above || !above->file || above->below != old || !old || !last)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the live chain of disk %s is not as it was", d->name);
    if (add_node(s, d, old, last->below, c->j->swap_to, node, err) < 0 ||
        reopen_above(s, d, c->j, above, node, above->read_only, err) < 0) {
        if (err->code == QSTILL_E_FAILED)
            err->code = QSTILL_E_PRECONDITION;
        return err->code;
    }
    return 0;
}

/* ----------------------------------------------------------------- on disk
 */

/* The header of the layer above names the new file: by QEMU, whose it is. */
static int name_new_file(struct session *s, const struct qmp_graph *g,
                         struct vm_disk *d, const struct journal *j,
                         struct qstill_error *err)
{
    const struct qmp_disk *live = session_live_disk(s, d);
    const struct qmp_node *above = livechain_node(s, g, d, j->swap_above);

    if (!live || !above || !node_reads(s, above->below, j->swap_to))
        return err_set(err, QSTILL_E_FAILED,
                       "QEMU does not have %s below %s after the reopen",
                       j->swap_to, j->swap_above);
    return qmp_change_backing_file(s->qmp,
                                   *live->device ? live->device : live->root,
                                   above->name, j->swap_to, err);
}

/* Whether the header of `path`, as it is on disk, names `backing`. */
static int names(const char *path, const char *backing, bool *does,
                 struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};

    if (layer_info(path, "qcow2", &info, err) < 0)
        return err->code;
    *does = info.header.has_backing && info.header.has_format &&
            strcmp(info.header.backing, backing) == 0 &&
            strcmp(info.header.backing_format, "qcow2") == 0;
    return 0;
}

static int verify_header(const struct journal *j, struct qstill_error *err)
{
    bool does = false;

    if (layer_sync(j->swap_above, err) < 0 ||
        names(j->swap_above, j->swap_to, &does, err) < 0)
        return err->code;
    if (!does)
        return err_set(err, QSTILL_E_FAILED,
                       "QEMU did not write %s into the header of %s",
                       j->swap_to, j->swap_above);
    return 0;
}

/* Those that a process which died here has given the new file already. */
static int follow_others(struct session *s, const struct journal *j,
                         const struct layers *all, struct qstill_error *err)
{
    const struct layer *made = layers_find(all, j->swap_to);

    for (const struct layer *l = made ? layers_child(all, made, NULL) : NULL; l;
         l = layers_child(all, made, l))
        if (!l->trash && collapse_reidentify(s, l->path, err) < 0)
            return err->code;
    return 0;
}

/* Other overlays of the old file, which no QEMU has open. One that cannot be
 * changed now keeps the old file, which stays hidden for it. */
static int repoint_others(struct session *s, const struct journal *j,
                          const struct layers *all, struct qstill_error *err)
{
    const struct layer *old = layers_find(all, j->swap_from);

    for (struct layer *l = old ? layers_child(all, old, NULL) : NULL; l;
         l = layers_child(all, old, l)) {
        struct qstill_error why = {0};
        CLEANUP(closep) int fd = -1;

        if (l->trash || session_same_file(l->path, j->swap_above))
            continue;
        if (io_openat(io_real(), AT_FDCWD, l->path, O_RDWR, 0, &fd, &why) < 0 ||
            image_lock(fd, l->path, IMAGE_LOCK_WRITE, &why) < 0 ||
            qcow2_repoint(io_real(), fd, l->path, j->swap_to, "qcow2", &why) <
                0)
            continue;
        if (collapse_reidentify(s, l->path, err) < 0)
            return err->code;
    }
    return 0;
}

/* The same for what a process that died here has begun. */
static int repoint_rest(struct session *s, const struct journal *j,
                        struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};

    return layers_load(s, &all, err) < 0 || follow_others(s, j, &all, err) < 0
               ? err->code
               : repoint_others(s, j, &all, err);
}

/* All that comes after the header; right to run again. `all`: the layers as
 * they were before it, or NULL. */
static int finish(struct session *s, struct journal *j,
                  const struct layers *all, struct qstill_error *err)
{
    if (collapse_move_layer(s, j->swap_from, j->swap_to, "qcow2", err) < 0 ||
        collapse_reidentify(s, j->swap_above, err) < 0 ||
        vmrecord_hide(&s->rec, j->swap_disk, j->swap_from, "qcow2", err) < 0 ||
        vmrecord_save(s->vmfd, &s->rec, err) < 0 ||
        (all ? repoint_others(s, j, all, err) : repoint_rest(s, j, err)) < 0)
        return err->code;
    j->swap_disk = j->swap_from = j->swap_to = j->swap_above = NULL;
    return journal_save(s->vmfd, j, err);
}

/* ------------------------------------------------------------------ the swap
 */

/* "/vm/root.OLD.qcow2" becomes "/vm/root.NEW.qcow2": beside it, so that every
 * name that is relative stays right. */
static int new_path(struct session *s, const struct vm_disk *d, const char *old,
                    const char *tag, const char **path,
                    struct qstill_error *err)
{
    const char *slash = strrchr(old, '/');
    CLEANUP(freep)
    char *dir = strndup(old, slash == old ? 1 : (size_t)(slash - old));

    return dir ? layer_path_in(s, d, dir, tag, path, err) : err_nomem(err);
}

static int merge_into_new(struct collapse *c, const struct step *st,
                          struct qstill_error *err)
{
    struct merge_request r = MERGE_REQUEST_INIT;

    if (collapse_request(c, st, &r, err) < 0)
        return err->code;
    r.children = NULL;
    r.child_count = 0;
    r.output = c->j->swap_to;
    if (collapse_run(c, &r, err) < 0)
        return err->code;
    return layer_sync_dir(c->j->swap_to, err);
}

static int give_up(struct session *s, struct qmp_graph *g,
                   const struct vm_disk *d, struct journal *j,
                   struct qstill_error *err)
{
    if ((s->qmp && livechain_release(s, g, j->swap_to, err) < 0) ||
        layer_remove(j->swap_to, err) < 0 ||
        (s->qmp && d && open_above(s, g, d, j, true, err) < 0))
        return err->code;
    j->swap_disk = j->swap_from = j->swap_to = j->swap_above = NULL;
    return 0;
}

/* The new node, as it is added, in the place of the old one. Its file's node
 * has a name of QEMU's, which nobody needs. */
static int patch_graph(struct collapse *c, struct qmp_graph *g,
                       const struct qmp_node *above,
                       const struct qmp_node *below, const char *node,
                       struct qstill_error *err)
{
    struct arena *a = &c->s->rec.arena;
    struct qmp_node *made = arena_alloc(a, sizeof(*made));
    struct qmp_node *file = arena_alloc(a, sizeof(*file));
    char *none = arena_strdup(a, "");

    if (!made || !file || !none)
        return err_nomem(err);
    *made = *above->below;
    *file = *above->below;
    made->name = arena_strdup(a, node);
    made->driver = arena_strdup(a, "qcow2");
    file->driver = arena_strdup(a, "file");
    made->path = file->path = arena_strdup(a, c->j->swap_to);
    if (!made->name || !made->driver || !file->driver || !made->path)
        return err_nomem(err);
    made->backing_path = file->backing_path = file->name = none;
    made->name_auto = false;
    file->name_auto = true;
    made->read_only = file->read_only = true;
    made->file = file;
    made->below = below;
    file->file = file->below = NULL;
    g->nodes[above - g->nodes].below = made;
    c->patched = true;
    return 0;
}

/* That QEMU reads the new file now, asked of QEMU again. All of its nodes are
 * the most that it is asked for in a merge: where it tells the edges alone,
 * they will do, for the new node's name is of this merge. */
static struct qmp_graph *look_again(struct collapse *c, struct vm_disk *d,
                                    const struct step *st, const char *node,
                                    struct qstill_error *err)
{
    struct session *s = c->s;
    struct qmp_graph *g = collapse_graph(c, err);
    const struct qmp_node *above =
        g ? livechain_node(s, g, d, c->j->swap_above) : NULL;
    const struct qmp_node *last =
        g ? livechain_node(s, g, d, st->last->path) : NULL;
    CLEANUP(freep) char *below = NULL;

    if (!g)
        return NULL;
    if (!above || !last ||
        qmp_graph_backing(s->qmp, g, above->name, &below, err) < 0) {
        if (err->code == QSTILL_E_UNREACHABLE)
            return NULL;
        err_clear(err);
        collapse_graph_changed(c);
        return collapse_graph(c, err);
    }
    if (below && strcmp(below, node) == 0)
        return patch_graph(c, g, above, last->below, node, err) < 0 ? NULL : g;
    err_set(err, QSTILL_E_FAILED,
            "QEMU does not have %s below %s after the reopen", c->j->swap_to,
            c->j->swap_above);
    return NULL;
}

/* What QEMU has is asked before, and again when it is another. */
static int swap(struct collapse *c, struct vm_disk *d, const struct step *st,
                const char *node, struct qstill_error *err)
{
    struct session *s = c->s;
    struct qmp_graph *g = collapse_graph(c, err);

    if (!g)
        return err->code;
    if (open_above(s, g, d, c->j, false, err) < 0)
        return livechain_refused(err);
    if (merge_into_new(c, st, err) < 0 ||
        (s->paranoid &&
         layer_compare(st->child->path, c->j->swap_to, err) < 0) ||
        swap_nodes(c, g, d, st, node, err) < 0)
        return err->code;
    g = look_again(c, d, st, node, err);
    if (!g || name_new_file(s, g, d, c->j, err) < 0 ||
        open_above(s, g, d, c->j, true, err) < 0 ||
        verify_header(c->j, err) < 0 || finish(s, c->j, &c->all, err) < 0 ||
        livechain_release(s, g, st->child->path, err) < 0)
        return err->code;
    return collapse_release(c, st, err);
}

int liveswap(struct collapse *c, struct vm_disk *d, const struct step *st,
             struct qstill_error *err)
{
    struct session *s = c->s;
    struct qstill_error second = {0};
    char tag[ID_LEN + 1];
    const char *path = NULL, *node;

    if (id_new(tag, err) < 0 ||
        new_path(s, d, st->child->path, tag, &path, err) < 0)
        return err->code;
    node = arena_printf(&s->rec.arena, NEW_NODES "%s", tag);
    if (!node)
        return err_nomem(err);
    c->j->swap_disk = d->name;
    c->j->swap_from = st->child->path;
    c->j->swap_to = path;
    c->j->swap_above = st->child->above->path;
    if (journal_save(s->vmfd, c->j, err) < 0)
        return err->code;
    if (swap(c, d, st, node, err) < 0) {
        err_wrap(err, "merging %s into a new file", st->first->path);
        collapse_graph_changed(c);
        if (err->code == QSTILL_E_UNREACHABLE) {
            c->no_room = false;
        } else if (liveswap_settle(s, c->j, &second) < 0) {
            c->no_room = false;
            err->code = QSTILL_E_FAILED; /* the journal is still needed */
        }
        return err->code;
    }
    if (c->text)
        buf_printf(c->text, "merged %s and %s into %s\n", st->first->path,
                   st->child->path, path);
    return 0;
}

int liveswap_settle(struct session *s, struct journal *j,
                    struct qstill_error *err)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    struct vm_disk *d;
    bool does = false;

    if (!j->swap_disk || !j->swap_from || !j->swap_to || !j->swap_above)
        return 0;
    d = vmrecord_disk(&s->rec, j->swap_disk);
    if (names(j->swap_above, j->swap_to, &does, err) < 0)
        return err->code;
    if (s->qmp && qmp_graph_read(s->qmp, &g, err) < 0)
        return err->code;
    /* QEMU reads the new file already: the header follows */
    if (!does && d && s->qmp &&
        node_reads(s, live_below(s, &g, d, j->swap_above), j->swap_to)) {
        if (name_new_file(s, &g, d, j, err) < 0)
            return err->code;
        does = true;
    }
    if (!does)
        return give_up(s, &g, d, j, err);
    if (d && s->qmp && open_above(s, &g, d, j, true, err) < 0)
        return err->code;
    if (verify_header(j, err) < 0)
        return err->code;
    return finish(s, j, NULL, err);
}
