/* SPDX-License-Identifier: MIT */
/* What is mounted where, for a process in another mount namespace than ours:
 * `ip netns exec` makes a new one for each command, with the same in it. */
#ifndef QSTILL_ENGINE_MOUNTS_H
#define QSTILL_ENGINE_MOUNTS_H

#include <stdbool.h>
#include <stdint.h>

/* Whether the process whose /proc directory this is sees the same file systems
 * as we, in the same places and with the same options. What cannot be read is
 * not the same. */
bool mounts_are_ours(int procfd);

/* Whether a name keeps this namespace of a kind ("net") where nobody need be in
 * it, as `ip netns add` makes one. `before`: one that was made by then
 * (seconds, as stat(2) has them), or 0. */
bool mounts_keep_space(const char *kind, uint64_t inode, double before);

#endif
