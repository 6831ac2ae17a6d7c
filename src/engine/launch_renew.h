/* SPDX-License-Identifier: MIT */
/*
 * A VM that was ended and started by its owner since it was attached may have
 * another command line by now, and a limit may be changed while QEMU runs: the
 * launch record follows the QEMU that is connected. One that we started, from
 * that very record, has nothing to tell but its limits.
 */
#ifndef QSTILL_ENGINE_LAUNCH_RENEW_H
#define QSTILL_ENGINE_LAUNCH_RENEW_H

struct session;

/*
 * Of a connected session that has no journal. Saves the record where the
 * session holds the lock. Left as it is, with a note, when a disk that the old
 * command line opens is not to be found in the new one, or when QEMU runs as
 * another user: `attach` alone says whom the VM belongs to.
 */
void launch_renew(struct session *s);

#endif
