/* SPDX-License-Identifier: MIT */
/*
 * What a disk's first layer stands on: a golden image, and what is below that.
 * It belongs to nobody here, and a snapshot shows what it should only on the
 * files that were there when it was made.
 */
#ifndef QSTILL_ENGINE_BASES_H
#define QSTILL_ENGINE_BASES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/arena.h"
#include "base/error.h"
#include "base_owners.h"

#define BASES_HINT                                                             \
    "bring back what the disk was made on, or let its name lead there again"

struct manifest;
struct session;

/* What stands there now, looked at once for each first layer. */
struct bases {
    struct session *s;
    struct arena arena;
    const struct manifest **up; /* of each snapshot, or NULL */
    struct base_list *seen;
    struct base_first {
        dev_t dev;
        ino_t ino;
    } * firsts; /* the images that the disks came from */
    size_t first_count;
    struct base_owners owners;
};

int bases_init(struct bases *b, struct session *s, struct qstill_error *err);
void bases_fini(struct bases *b);

/* CORRUPT when the snapshot's disks stand on other files than then, or these
 * were written to, NOT_FOUND when one is gone, BUSY when one is another VM's
 * layer and that one is at work. */
int bases_check(struct bases *b, const struct manifest *m,
                struct qstill_error *err);

/* NOT_FOUND or PERMISSION when what its disks stand on cannot be opened now. */
int bases_reach(struct bases *b, const struct manifest *m,
                struct qstill_error *err);

/* Of one snapshot; `force` notes it. */
int bases_check_one(struct session *s, const struct manifest *m, bool force,
                    struct qstill_error *err);
/* Of the snapshot that heads stand on (NULL: none): only noted. */
void bases_note(struct session *s, const char *snapshot);

/* Of all; of those that fail on the same files the oldest one is told. What
 * cannot be told now is only noted. */
typedef void bases_tell_fn(void *user, struct qstill_error *why);
int bases_foresee(struct session *s, bases_tell_fn *tell, void *user,
                  struct qstill_error *err);

/* Writes down what stands there now, for the manifest of a snapshot that is
 * being made on top of the current one. */
int bases_keep(struct session *s, struct manifest *m, struct qstill_error *err);

#endif
