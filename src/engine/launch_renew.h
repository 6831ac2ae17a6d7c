/* SPDX-License-Identifier: MIT */
/*
 * A VM that was ended and started by its owner since it was attached may have
 * another command line by now, and a limit may be changed while QEMU runs: the
 * launch record follows the QEMU that is connected. One that we started, from
 * that very record, has nothing to tell but its limits.
 */
#ifndef QSTILL_ENGINE_LAUNCH_RENEW_H
#define QSTILL_ENGINE_LAUNCH_RENEW_H

#include "base/error.h"

struct session;

/* What a launcher was asked to start, noted before: QEMU need not have our
 * environment, by which start_was_ours() knows it. argv ends with NULL; NULL:
 * no words. */
enum launch_words { LAUNCH_ASKED, LAUNCH_STARTED };
int launch_note(struct session *s, enum launch_words what, char *const *argv,
                struct qstill_error *err);
/* And what is running now, that it has started. What cannot be read is not
 * noted. */
void launch_note_started(struct session *s);

/*
 * Of a connected session that has no journal. Saves the record where the
 * session holds the lock. Left as it is, with a note, when a disk that the old
 * command line opens is not to be found in the new one, or when QEMU runs as
 * another user: `attach` alone says whom the VM belongs to.
 */
void launch_renew(struct session *s);

#endif
