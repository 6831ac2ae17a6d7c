/* SPDX-License-Identifier: MIT */
/*
 * STORE/VM/lock: one operation at a time. An OFD write lock of the kernel, so
 * it dies with its owner; the content only says who holds it.
 *
 * On a filesystem whose locks do not reach other hosts the content is what is
 * left: a lock that another host did not release is refused, since from here
 * nobody can tell whether its owner lives.
 */
#ifndef QSTILL_ENGINE_LOCK_H
#define QSTILL_ENGINE_LOCK_H

#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

#include "base/error.h"

enum { LOCK_HOST_MAX = 65, LOCK_VERB_MAX = 32 };

struct lock_info {
    bool held; /* false: the other members are empty */
    pid_t pid;
    char host[LOCK_HOST_MAX];
    char verb[LOCK_VERB_MAX];
    time_t since;
};

/*
 * Takes the lock of the VM directory for `verb` (a word, "create"), without
 * waiting. BUSY names the holder. A lock left by a dead process of this host
 * is taken over. *lockfd is close-on-exec; give it to lock_release(). (A child
 * that is forked and does not exec would keep the lock.)
 */
int lock_take(int vmdirfd, const char *verb, int *lockfd,
              struct qstill_error *err);

/* Says in the file that the lock was released, and closes. -1 is fine. */
void lock_release(int *lockfd);

/* Who holds the lock now; changes nothing, needs no write access. */
int lock_holder(int vmdirfd, struct lock_info *out, struct qstill_error *err);

/* For who reads without the lock: whether an operation was at work between two
 * looks, which the first did not precede and the second did not follow. */
struct lock_look {
    bool held;
    ino_t ino; /* 0: nobody has ever held it */
    struct timespec changed;
};
void lock_look(int vmdirfd, struct lock_look *out);
bool lock_was_free(const struct lock_look *before,
                   const struct lock_look *after);
/* It is the same operation all the time. */
bool lock_was_one(const struct lock_look *before,
                  const struct lock_look *after);
/* BUSY, which names the holder, as lock_take() would say it. */
int lock_say_busy(int vmdirfd, struct qstill_error *err);

#endif
