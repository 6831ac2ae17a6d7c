/* SPDX-License-Identifier: MIT */
/*
 * The file `sums`. All integers are unsigned 64-bit little-endian, so every
 * field is 8-byte aligned.
 *
 *   0    magic     "QSTLSUMS"
 *   8    version   1
 *   16   length    of the whole file, in bytes
 *   24   blocks    how many
 *   32   device    length of device.state in bytes
 *   40   devsum    XXH3_64(device.state, seed 0)
 *   48   total     sum of the blocks' sizes
 *   56   flags     0
 *   64   +------------------------------------------------------ per block
 *        | size      bytes, a multiple of 4096
 *        | page      size of a page of the memory behind it; 0: unknown
 *        | idlen     1..255
 *        | id        idlen bytes, none of them NUL, then zeros up to a
 *        |           multiple of 8
 *        +------------------------------------------------------
 *        sums      of block 0: one per MiB (the last one may be shorter),
 *                  then of block 1, ...: see ramset.h
 *   -8   self      XXH3_64(all bytes in front of it, seed 0)
 *
 * A reader refuses another version, flags it does not know, a file that is
 * longer or shorter than it says, and a wrong `self`.
 */
#ifndef QSTILL_MEMSTATE_RAMSET_LAYOUT_H
#define QSTILL_MEMSTATE_RAMSET_LAYOUT_H

#define SUMS_MAGIC   "QSTLSUMS"
#define SUMS_VERSION 1u

#define SUMS_OFF_VERSION 8u
#define SUMS_OFF_LENGTH  16u
#define SUMS_OFF_BLOCKS  24u
#define SUMS_OFF_DEVICE  32u
#define SUMS_OFF_DEVSUM  40u
#define SUMS_OFF_TOTAL   48u
#define SUMS_OFF_FLAGS   56u
#define SUMS_HEADER      64u

#define SUMS_BLOCK_FIXED 24u /* size, page, idlen */
#define SUMS_SELF        8u

/* header + blocks (24 + 256 each) + 8 per MiB of RAM, one more chunk per
 * block for what is no whole MiB, + self: 128 MiB and a little. */
#define SUMS_FILE_MAX                                                          \
    (SUMS_HEADER + RAMSET_BLOCKS_MAX * (SUMS_BLOCK_FIXED + 256u + 8u) +        \
     RAMSET_BYTES_MAX / RAMSET_CHUNK * 8u + SUMS_SELF)

#endif
