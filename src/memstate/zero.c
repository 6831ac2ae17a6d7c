/* SPDX-License-Identifier: MIT */
#include "zero.h"

#include <stdint.h>
#include <string.h>

bool zero_is_plain(const void *data, size_t len)
{
    const char *p = data;

    for (size_t i = 0; i < len; i += 128) {
        uint64_t w[16], any = 0;

        memcpy(w, p + i, sizeof(w));
        for (size_t k = 0; k < 16; k++)
            any |= w[k];
        if (any)
            return false;
    }
    return true;
}

#if defined(__x86_64__)

#include <immintrin.h>

bool zero_has_avx2(void)
{
    return __builtin_cpu_supports("avx2") != 0;
}

__attribute__((target("avx2"))) bool zero_is_avx2(const void *data, size_t len)
{
    const char *p = data;

    for (size_t i = 0; i < len; i += 128) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(p + i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(p + i + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(p + i + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(p + i + 96));
        __m256i any =
            _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));

        if (!_mm256_testz_si256(any, any))
            return false;
    }
    return true;
}

#else

bool zero_has_avx2(void)
{
    return false;
}

bool zero_is_avx2(const void *data, size_t len)
{
    return zero_is_plain(data, len);
}

#endif

bool zero_is(const void *data, size_t len)
{
    if (zero_has_avx2())
        return zero_is_avx2(data, len);
    return zero_is_plain(data, len);
}
