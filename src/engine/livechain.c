/* SPDX-License-Identifier: MIT */
#include "livechain.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "job.h"
#include "journal.h"
#include "layer_file.h"
#include "layers.h"
#include "qcow2/info.h"
#include "qcow2/lock.h"
#include "qcow2/repoint.h"
#include "qmp/block.h"
#include "qmp/graph.h"
#include "qmp/job.h"
#include "qmp/migrate.h"
#include "ready.h"
#include "session.h"

/* One job at a time works on a VM, under its lock. */
#define JOB_ID         "qstill-merge"
#define JOB_SLICE_MS   10000
#define JOB_PULSE_MS   200 /* the same while somebody looks on */
#define PIVOT_MS       30000
#define CHAIN_MAX      512
#define RESUME_WAIT_MS 30000

static const struct qmp_node *
head_node(struct session *s, const struct qmp_graph *g, const struct vm_disk *d)
{
    const struct qmp_disk *q = session_live_disk(s, d);

    return q ? qmp_graph_find(g, q->node) : NULL;
}

/* The absolute name of a node's file, or NULL. */
static const char *path_of(struct session *s, const struct qmp_node *n)
{
    const char *name = n->file ? n->file->path : n->path;

    return *name ? session_resolve(&s->rec.arena, &s->rec.launch, name) : NULL;
}

const struct qmp_node *livechain_node(struct session *s,
                                      const struct qmp_graph *g,
                                      const struct vm_disk *d, const char *path)
{
    const struct qmp_node *chain[CHAIN_MAX];
    const struct qmp_node *head = head_node(s, g, d);
    size_t n = head ? qmp_graph_chain(head, chain, CHAIN_MAX) : 0;

    for (size_t i = 0; i < n && i < CHAIN_MAX; i++) {
        const char *abs = path_of(s, chain[i]);

        if (abs && session_same_file(abs, path))
            return chain[i];
    }
    return NULL;
}

int livechain_mark(struct session *s, const struct qmp_graph *g,
                   struct layers *all, struct qstill_error *err)
{
    const struct qmp_node *chain[CHAIN_MAX];

    for (size_t i = 0; i < all->count; i++)
        all->items[i].node = NULL, all->items[i].above = NULL;
    for (size_t i = 0; g && i < s->rec.disk_count; i++) {
        const struct qmp_node *head = head_node(s, g, &s->rec.disks[i]);
        size_t n = head ? qmp_graph_chain(head, chain, CHAIN_MAX) : 0;
        struct layer *above = NULL;

        for (size_t k = 0; k < n && k < CHAIN_MAX; k++) {
            const char *path = path_of(s, chain[k]);
            struct layer *l = path ? layers_find(all, path) : NULL;

            if (!l)
                continue;
            l->node = arena_strdup(&s->rec.arena, chain[k]->name);
            if (!l->node)
                return err_nomem(err);
            l->node_size = chain[k]->virtual_size;
            l->above = above;
            above = l;
        }
    }
    return 0;
}

static bool is_file(struct session *s, const struct qmp_node *n,
                    const char *path)
{
    const char *abs = path_of(s, n);

    return abs && strcmp(abs, path) == 0;
}

bool livechain_has_open(struct session *s, const struct qmp_graph *g,
                        const char *path)
{
    for (size_t i = 0; i < g->count; i++)
        if (is_file(s, &g->nodes[i], path))
            return true;
    return false;
}

int livechain_release(struct session *s, const struct qmp_graph *g,
                      const char *path, struct qstill_error *err)
{
    struct qstill_error why = {0};

    /* QEMU refuses what is in use, or gone by now; what it named itself is not
     * its monitor's. Format nodes first, they hold the protocol's */
    for (int round = 0; round < 2; round++)
        for (size_t i = 0; i < g->count; i++)
            if ((g->nodes[i].file != NULL) == (round == 0) &&
                !g->nodes[i].name_auto && is_file(s, &g->nodes[i], path) &&
                qmp_blockdev_del(s->qmp, g->nodes[i].name, QMP_MISSING_UNASKED,
                                 &why) < 0 &&
                why.code == QSTILL_E_UNREACHABLE)
                return (*err = why).code;
    return 0;
}

static int missing_node(const struct vm_disk *d, const char *path,
                        struct qstill_error *err)
{
    return err_set(err, QSTILL_E_PRECONDITION,
                   "%s is not in the live chain of disk %s", path, d->name);
}

/* A cancelled commit leaves the old chain in place, a stream what it has put
 * into its node so far, which is backed by the same as before. */
static int stop_job(struct session *s, struct qstill_error *err)
{
    struct qstill_job *job = s->job;
    struct qstill_error second = {0};

    s->job = NULL;
    livechain_settle(s, &second);
    s->job = job;
    return err->code;
}

/* As long as QEMU answers, its job is left its time. */
static int wait_job(struct session *s, enum qmp_job_state until,
                    struct qstill_error *err)
{
    uint32_t slice_ms = s->job ? JOB_PULSE_MS : JOB_SLICE_MS;
    struct qmp_job job;

    for (;;) {
        if (qmp_job_read(s->qmp, JOB_ID, &job, err) < 0)
            return err->code;
        if (job.state == QMP_JOB_CONCLUDED ||
            (until == QMP_JOB_READY && job.state == QMP_JOB_READY))
            return 0;
        if (job_pulse(s->job, job.done, job.total, err) < 0)
            return stop_job(s, err);
        if (qmp_job_wait(s->qmp, JOB_ID, until, slice_ms, &job, err) == 0)
            return 0;
        if (err->code != QSTILL_E_UNREACHABLE)
            return err->code;
        err->code = 0; /* took longer: ask whether QEMU still answers */
    }
}

/* As the journal has it. */
static bool pivot_is_noted(const struct session *s)
{
    struct qstill_error ignored = {0};
    struct journal j;
    bool noted;

    if (journal_load(s->vmfd, &j, &ignored) < 0)
        return false;
    noted = j.pivot_disk && j.pivot_live;
    journal_fini(&j);
    return noted;
}

int livechain_settle(struct session *s, struct qstill_error *err)
{
    struct qmp_job job;
    struct qstill_error absent = {0};

    if (qmp_job_read(s->qmp, JOB_ID, &job, &absent) < 0)
        return absent.code == QSTILL_E_NOT_FOUND ? 0 : (*err = absent).code;
    if (job.state == QMP_JOB_PENDING && pivot_is_noted(s)) {
        /* back again would make the journal wrong */
        if (qmp_job_finalize(s->qmp, JOB_ID, err) < 0 ||
            wait_job(s, QMP_JOB_CONCLUDED, err) < 0)
            return err->code;
    } else if (job.state != QMP_JOB_CONCLUDED) {
        qmp_job_cancel(s->qmp, JOB_ID, &absent);
        if (wait_job(s, QMP_JOB_CONCLUDED, err) < 0)
            return err->code;
    }
    return qmp_job_dismiss(s->qmp, JOB_ID, err);
}

static int resume(struct session *s, struct qstill_error *err)
{
    double deadline = clock_ms() + RESUME_WAIT_MS;

    /* shut down, say: nobody owes it a `cont`, and QEMU would refuse */
    if (qmp_status_read(s->qmp, &s->status, err) < 0)
        return err->code;
    if (ready_has_halted(s) && strcmp(s->status.state, "internal-error") != 0) {
        store_note(s->store, "VM %s has halted by itself (%s) and stays so",
                   s->vm, s->status.state);
        return 0;
    }
    for (;;) {
        if (qmp_cont(s->qmp, err) == 0)
            return qmp_status_read(s->qmp, &s->status, err);
        if (err->code != QSTILL_E_FAILED || clock_ms() > deadline)
            return err_wrap(err, "resuming the guest");
        clock_sleep_ms(20);
        err->code = 0;
    }
}

int livechain_resume(struct session *s, bool was_running,
                     struct qstill_error *err)
{
    if (!was_running)
        return 0;
    return resume(s, err) < 0 ? err->code : session_refresh(s, err);
}

int livechain_set_head(struct session *s, struct vm_disk *d, const char *to,
                       const char *to_format, struct qstill_error *err)
{
    if (session_same_file(d->head_path, to))
        return 0;
    if (vmrecord_hide(&s->rec, d->name, d->head_path, d->head_format, err) < 0)
        return err->code;
    vmrecord_unhide(&s->rec, to);
    return vmrecord_set_head(&s->rec, d->name, to, to_format, err);
}

/* Or it has failed by itself, and says why. */
static int ended_by_others(struct session *s, struct qstill_error *err)
{
    if (qmp_job_finish(s->qmp, JOB_ID, PIVOT_MS, err) == 0)
        err_set(err, QSTILL_E_FAILED, "somebody else ended QEMU's job '%s'",
                JOB_ID);
    return err->code;
}

/* Until it is finalized, both files read the same whatever becomes of the
 * guest or of QEMU: what has been copied is flushed, and no write goes to
 * either of them. */
static int complete(struct session *s, struct qstill_error *err)
{
    struct qmp_job job;

    if (qmp_job_complete(s->qmp, JOB_ID, err) < 0 ||
        qmp_job_wait(s->qmp, JOB_ID, QMP_JOB_PENDING, PIVOT_MS, &job, err) < 0)
        return err->code;
    if (job.state == QMP_JOB_PENDING)
        return 0;
    return ended_by_others(s, err);
}

/* A journal that could not be saved may say it all the same. */
static int note_pivot(struct session *s, struct journal *j,
                      struct qstill_error *err)
{
    if (journal_save(s->vmfd, j, err) == 0 || pivot_is_noted(s))
        return err_clear(err);
    journal_forget_pivot(j);
    return err->code;
}

/* The session, and the graph, of the disk's new head. */
static int moved(struct session *s, struct qmp_graph *g, struct vm_disk *d,
                 const struct qmp_node *head, struct qstill_error *err)
{
    for (size_t i = 0; i < s->live.count; i++)
        if (&s->live.items[i] == session_live_disk(s, d)) {
            g->nodes[head - g->nodes].read_only = false;
            return qmp_disk_move(&s->live.items[i], g, head->name, err);
        }
    return 0;
}

static int pivot(struct session *s, struct qmp_graph *g, struct vm_disk *d,
                 const struct qmp_node *base, const char *to,
                 const char *to_format, struct journal *j,
                 struct qstill_error *err)
{
    if (complete(s, err) < 0)
        return err->code;
    j->pivot_disk = d->name;
    j->pivot_from = d->head_path;
    j->pivot_to = to;
    j->pivot_to_format = to_format;
    j->pivot_live = true;
    if (note_pivot(s, j, err) < 0 ||
        qmp_job_finalize(s->qmp, JOB_ID, err) < 0 ||
        qmp_job_finish(s->qmp, JOB_ID, PIVOT_MS, err) < 0)
        return err->code;
    if (moved(s, g, d, base, err) < 0 ||
        livechain_release(s, g, d->head_path, err) < 0 ||
        livechain_set_head(s, d, to, to_format, err) < 0 ||
        vmrecord_save(s->vmfd, &s->rec, err) < 0)
        return err->code;
    journal_forget_pivot(j);
    return 0;
}

/* The journal says that it is us who stop the guest, from just before that to
 * just after it runs again. */
static int stop_and_pivot(struct session *s, struct qmp_graph *g,
                          struct vm_disk *d, const struct qmp_node *base,
                          const char *to, const char *to_format,
                          struct journal *j, struct qstill_error *err)
{
    const bool had = j->was_running, resumed = j->resumed;
    struct qstill_error second = {0};
    bool was_running;

    if (qmp_status_read(s->qmp, &s->status, err) < 0)
        return err->code;
    was_running = s->status.running;
    j->was_running = had || was_running;
    j->resumed = resumed && !was_running;
    if (was_running && journal_save(s->vmfd, j, err) < 0) {
        j->was_running = had;
        j->resumed = resumed;
        return err->code;
    }
    if (was_running && qmp_stop(s->qmp, 0, err) < 0)
        return err->code;
    pivot(s, g, d, base, to, to_format, j, err);
    if (was_running && resume(s, &second) < 0)
        return err->code < 0 ? err->code : (*err = second).code;
    j->was_running = had;
    j->resumed = resumed;
    if (journal_save(s->vmfd, j, &second) < 0 && err->code == 0)
        *err = second;
    return err->code;
}

int livechain_refused(struct qstill_error *err)
{
    if (err->code == QSTILL_E_FAILED && strstr(err->message, "\" lock"))
        err->code = QSTILL_E_BUSY;
    return err->code;
}

static void forget_pull(struct journal *j)
{
    j->pull_into = j->pull_from = j->pull_from_format = NULL;
}

int livechain_commit_head(struct session *s, struct qmp_graph *g,
                          struct vm_disk *d, const char *to,
                          const char *to_format, struct journal *j,
                          struct qstill_error *err)
{
    struct qmp_commit c = {.job = JOB_ID, .speed = s->bwlimit, .held = true};
    const struct qmp_node *head, *base;
    const struct qmp_disk *q;
    struct qstill_error second = {0};
    struct qmp_job job;

    if (livechain_settle(s, err) < 0)
        return err->code;
    head = head_node(s, g, d);
    base = livechain_node(s, g, d, to);
    if (!head || !base)
        return missing_node(d, to, err);
    q = session_live_disk(s, d);
    c.device = q->root;
    c.top_node = q->filter ? head->name : NULL;
    c.base_node = base->name;
    if (qmp_block_commit(s->qmp, &c, err) < 0 && livechain_refused(err) < 0)
        return err_wrap(err, "folding %s into %s", d->head_path, to);
    if (wait_job(s, QMP_JOB_READY, err) < 0 ||
        qmp_job_read(s->qmp, JOB_ID, &job, err) < 0)
        return err_wrap(err, "folding %s into %s", d->head_path, to);
    if (job.state == QMP_JOB_CONCLUDED) {
        ended_by_others(s, err);
        return err_wrap(err, "folding %s into %s", d->head_path, to);
    }
    if (stop_and_pivot(s, g, d, base, to, to_format, j, err) < 0) {
        livechain_settle(s, &second);
        return err_wrap(err, "folding %s into %s", d->head_path, to);
    }
    return 0;
}

/* What a job has put into a node may still be in QEMU's memory alone. A node
 * that only serves as backing was flushed when it became read-only again. */
static int finish_pull(struct session *s, struct journal *j, const char *node,
                       struct qstill_error *err)
{
    if (qmp_node_flush(s->qmp, node, err) < 0)
        return err->code;
    forget_pull(j);
    return journal_save(s->vmfd, j, err);
}

int livechain_pull(struct session *s, struct vm_disk *d,
                   const struct layer *layer, const struct layer *first,
                   const struct layer *last, struct journal *j,
                   struct qstill_error *err)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    struct qmp_stream st = {.job = JOB_ID, .speed = s->bwlimit};
    const struct qmp_node *top, *gone;

    if (livechain_settle(s, err) < 0 || qmp_graph_read(s->qmp, &g, err) < 0)
        return err->code;
    top = livechain_node(s, &g, d, layer->path);
    gone = livechain_node(s, &g, d, last->path);
    if (!top || !gone)
        return missing_node(d, top ? last->path : layer->path, err);
    st.device = top->name;
    st.base_node = gone->below ? gone->below->name : NULL;
    /* QEMU's own choice may be a "json:" with all of the chain below in it,
     * which the next merge there makes wrong */
    if (gone->below && last->backing && is_file(s, gone->below, last->backing))
        st.backing_file = last->backing;
    j->pull_into = layer->path;
    j->pull_from = first->path;
    j->pull_from_format = first->format;
    if (journal_save(s->vmfd, j, err) < 0)
        return err->code;
    if (qmp_block_stream(s->qmp, &st, err) < 0) {
        if (livechain_refused(err) == QSTILL_E_BUSY)
            forget_pull(j);
        return err_wrap(err, "pulling %s into %s", first->path, layer->path);
    }
    if (wait_job(s, QMP_JOB_CONCLUDED, err) < 0 ||
        qmp_job_finish(s->qmp, JOB_ID, PIVOT_MS, err) < 0 ||
        finish_pull(s, j, top->name, err) < 0)
        return err_wrap(err, "pulling %s into %s", first->path, layer->path);
    return 0;
}

/* With QEMU gone nobody knows what of the pulled layers has reached the file:
 * it is backed by them again, which is right with any part of it. */
static int unpull(struct journal *j, struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    CLEANUP(closep) int fd = -1;

    if (layer_info(j->pull_into, "qcow2", &info, err) < 0)
        return err->code;
    if (access(j->pull_from, F_OK) < 0 ||
        (info.header.has_backing &&
         session_same_file(info.header.backing, j->pull_from)))
        return 0;
    if (io_openat(io_real(), AT_FDCWD, j->pull_into, O_RDWR, 0, &fd, err) < 0 ||
        image_lock(fd, j->pull_into, IMAGE_LOCK_WRITE, err) < 0)
        return err->code;
    return qcow2_repoint(io_real(), fd, j->pull_into, j->pull_from,
                         j->pull_from_format, err);
}

int livechain_settle_pull(struct session *s, struct journal *j,
                          struct qstill_error *err)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;

    if (!j->pull_into || !j->pull_from || !j->pull_from_format)
        return 0;
    if (!s->qmp) {
        if (unpull(j, err) < 0)
            return err->code;
        forget_pull(j);
        return 0;
    }
    if (livechain_settle(s, err) < 0 || qmp_graph_read(s->qmp, &g, err) < 0)
        return err->code;
    for (size_t i = 0; i < g.count; i++)
        if (g.nodes[i].file && is_file(s, &g.nodes[i], j->pull_into))
            return finish_pull(s, j, g.nodes[i].name, err);
    /* another QEMU than the one that pulled, with another chain */
    if (unpull(j, err) < 0)
        return err->code;
    forget_pull(j);
    return 0;
}
