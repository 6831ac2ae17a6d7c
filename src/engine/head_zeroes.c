/* SPDX-License-Identifier: MIT */
#include "head_zeroes.h"

#include <string.h>

#include "launch_discard.h"
#include "qmp/block.h"
#include "qmp/graph.h"
#include "session.h"

/* NULL: nothing is wanted, or nobody knows what. */
static const char *wanted(struct session *s, const struct vm_disk *d)
{
    const char *word = launch_detect_zeroes(s, d);

    return word && strcmp(word, "off") != 0 ? word : NULL;
}

static bool any_wanted(struct session *s)
{
    for (size_t i = 0; i < s->rec.disk_count; i++)
        if (wanted(s, &s->rec.disks[i]))
            return true;
    return false;
}

static int keep_one(struct session *s, const struct qmp_graph *g,
                    const struct qmp_disk *live, const char *word, bool works,
                    struct qstill_error *err)
{
    const struct qmp_node *n = qmp_graph_find(g, live->node);

    if (!n || strcmp(n->detect_zeroes, word) == 0)
        return 0;
    if (!works)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "this QEMU cannot reopen a disk that has an iothread");
    return qmp_node_detect_zeroes(s->qmp, n, word, err);
}

void head_zeroes_keep(struct session *s)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    struct qstill_error err = {0};
    bool works;

    if (!s->qmp || !any_wanted(s) || session_refresh(s, &err) < 0 ||
        qmp_swap_works(s->qmp, &works, &err) < 0 ||
        qmp_graph_read(s->qmp, &g, &err) < 0)
        return;
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];
        const struct qmp_disk *live = session_live_disk(s, d);
        const char *word = wanted(s, d);

        err_clear(&err);
        if (live && word && keep_one(s, &g, live, word, works, &err) < 0)
            store_note(s->store,
                       "disk %s has no detect-zeroes=%s until QEMU is started "
                       "again: %s",
                       d->name, word, err.message);
    }
}
