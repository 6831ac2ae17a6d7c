/* SPDX-License-Identifier: MIT */
#include "compress.h"

#include <limits.h>
#include <stdbool.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

enum { READ_WINDOW = -15, WRITE_WINDOW = -12, MEM_LEVEL = 9 };

int compress_inflate(void *out, size_t out_len, const void *in, size_t in_len)
{
    z_stream z = {.next_in = (Bytef *)in,
                  .avail_in = (uInt)in_len,
                  .next_out = out,
                  .avail_out = (uInt)out_len};
    int r;

    if (in_len > UINT_MAX || out_len > UINT_MAX)
        return 1;
    if (inflateInit2(&z, READ_WINDOW) != Z_OK)
        return -1;
    r = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    if (r == Z_MEM_ERROR)
        return -1;
    /* Z_BUF_ERROR: the output is full and the input is not at its end, which
     * is a length rounded up to sectors */
    return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : 1;
}

int compress_deflate(void *out, size_t out_len, const void *in, size_t in_len,
                     size_t *used)
{
    z_stream z = {.next_in = (Bytef *)in,
                  .avail_in = (uInt)in_len,
                  .next_out = out,
                  .avail_out = (uInt)out_len};
    int r;

    if (in_len > UINT_MAX || out_len > UINT_MAX ||
        deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WRITE_WINDOW,
                     MEM_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK)
        return -1;
    r = deflate(&z, Z_FINISH);
    deflateEnd(&z);
    if (r != Z_STREAM_END)
        return 1;
    *used = out_len - z.avail_out;
    return 0;
}

static bool is_no_memory(size_t zstd)
{
    return ZSTD_getErrorCode(zstd) == ZSTD_error_memory_allocation;
}

int compress_unzstd(void *out, size_t out_len, const void *in, size_t in_len)
{
    ZSTD_DCtx *ctx = ZSTD_createDCtx();
    ZSTD_inBuffer src = {in, in_len, 0};
    ZSTD_outBuffer dst = {out, out_len, 0};
    size_t r = 1;

    if (!ctx)
        return -1;
    /* frame by frame; each round must get somewhere */
    while (dst.pos < dst.size) {
        size_t in_before = src.pos, out_before = dst.pos;

        r = ZSTD_decompressStream(ctx, &dst, &src);
        if (ZSTD_isError(r) || (src.pos == in_before && dst.pos == out_before))
            break;
    }
    ZSTD_freeDCtx(ctx);
    if (is_no_memory(r))
        return -1;
    return dst.pos == dst.size && !ZSTD_isError(r) ? 0 : 1;
}

int compress_zstd(void *out, size_t out_len, const void *in, size_t in_len,
                  int level, size_t *used)
{
    size_t r = ZSTD_compress(out, out_len, in, in_len, level);

    if (ZSTD_isError(r))
        return is_no_memory(r) ? -1 : 1;
    *used = r;
    return 0;
}
