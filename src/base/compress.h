/* SPDX-License-Identifier: MIT */
/*
 * Compression of bounded blocks, as qcow2 clusters need it; the one home of
 * zlib and zstd. Pure functions over memory, safe from any thread.
 */
#ifndef QSTILL_BASE_COMPRESS_H
#define QSTILL_BASE_COMPRESS_H

#include <stddef.h>
#include <stdint.h>

/* Raw deflate with any window. 0 when exactly out_len bytes came out (what
 * follows them in the input is ignored), 1 when the input is damaged, -1 out of
 * memory. */
int compress_inflate(void *out, size_t out_len, const void *in, size_t in_len);

/* Raw deflate with a 4 KiB window, as QEMU reads it. 0 and *used when the
 * result fits into out_len, 1 when it does not, -1 out of memory. */
int compress_deflate(void *out, size_t out_len, const void *in, size_t in_len,
                     size_t *used);

/* One or more zstd frames, as above; `level` 1..19. */
int compress_unzstd(void *out, size_t out_len, const void *in, size_t in_len);
int compress_zstd(void *out, size_t out_len, const void *in, size_t in_len,
                  int level, size_t *used);

#endif
