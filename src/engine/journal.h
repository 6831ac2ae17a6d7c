/* SPDX-License-Identifier: MIT */
/*
 * journal.json stands in STORE/VM only while an operation is under way. It is
 * written before the operation's first change and again at each step that a
 * recovery must know of; removing it ends the operation.
 */
#ifndef QSTILL_ENGINE_JOURNAL_H
#define QSTILL_ENGINE_JOURNAL_H

#include "base/arena.h"
#include "base/error.h"
#include "media.h"

enum journal_op {
    JOURNAL_CREATE,
    JOURNAL_REVERT,
    JOURNAL_DELETE,
    JOURNAL_UNDO
};

/* In order. Each op uses some of them. */
enum journal_phase {
    JOURNAL_BEGUN,     /* files may have been made; undo removes them */
    JOURNAL_SWITCHING, /* heads may be the new ones: ask QEMU or the images */
    JOURNAL_COMMITTED  /* roll forward */
};

struct journal_disk {
    const char *disk;
    const char *old_path;
    const char *old_format;
    const char *new_path;
    const char *new_format;
};

#define JOURNAL_LOADS_MAX 1024u /* as many as a RAM file set has blocks */
/* A RAM block whose content outlives the VM: an nvdimm of a file. */
struct journal_load {
    const char *block;
    const char *file;
};

struct journal {
    struct arena arena;
    enum journal_op op;
    enum journal_phase phase;
    const char *snapshot; /* its id; of a delete the first one's */
    const char *tag;      /* of this operation alone; NULL in old journals */
    uint64_t keep_trash;  /* operations that its trash outlives (trash.h) */
    const char *mapped;   /* revert: vm.json's when it is done */
    const char *undone;   /* undo: the tag of the trash that comes back */
    size_t id_count;      /* delete: all that go */
    char **ids;
    const char *old_current; /* vm.json's before (revert) */
    bool was_running;        /* resume the VM when it is found paused, */
    bool resumed;            /* but for one that was let run on since */
    bool freezing;           /* thaw the guest */
    bool inplace;            /* revert: in the running process */
    uint64_t pid, pid_start; /* QEMU's (start in clock ticks after boot): of a
                                revert in place and of a create */
    bool reset;              /* revert: the guest is to boot */
    size_t disk_count;
    struct journal_disk *disks;
    struct media media; /* revert in place: what was in the drives that get
                           other media */
    size_t load_count;  /* revert: those that memory is written to from here on,
                           but of one in place: that are kept in undo.pages */
    struct journal_load *loads;
    const char *boot; /* revert in place: the host's boot id */
    const char *kept; /* revert: the snapshot that --keep has made */
    /* a head is folded into a layer below it, which becomes the head */
    const char *pivot_disk;
    const char *pivot_from;
    const char *pivot_to;
    const char *pivot_to_format;
    bool pivot_live; /* by QEMU, which had done all but the change itself, and
                        let no write through: pivot_to reads right from here
                        on, and pivot_from may be stale */
    /* a frozen layer that a merge rewrites: its manifest follows */
    const char *rewriting;
    size_t rewrite_count; /* the same for one of ours: all that it rewrites */
    char **rewrites;
    /* our merge of a layer into the disk's first image: the layer's snapshot
     * names the first image then */
    const char *lowering;
    const char *lowered; /* the first image */
    const char *lowered_format;
    /* QEMU pulls `pull_from` (and what is below it) into `pull_into`. Until
     * that is durable, pull_into may go on with pull_from at any time */
    const char *pull_into;
    const char *pull_from;
    const char *pull_from_format;
    /* swap_to, a new file, takes the place of the frozen layer swap_from,
     * which `swap_above` stands on in the running QEMU (liveswap.h) */
    const char *swap_disk;
    const char *swap_from;
    const char *swap_to;
    const char *swap_above;
    bool keep_hidden; /* layers that several share stay, if that is cheaper */
    bool tell_lost;   /* a damaged one goes: say which files stay (lost.h) */
};

/* NOT_FOUND when there is none. */
int journal_load(int vmfd, struct journal *out, struct qstill_error *err);
int journal_save(int vmfd, const struct journal *j, struct qstill_error *err);
int journal_remove(int vmfd, struct qstill_error *err);
/* In memory. */
void journal_forget_pivot(struct journal *j);
/* Whether a guest that is found paused may be so because of the operation. */
bool journal_stopped_it(const struct journal *j);
/* What users call it: "create", ... */
const char *journal_op_name(enum journal_op op);
bool journal_exists(int vmfd);
void journal_fini(struct journal *j);

#endif
