/* SPDX-License-Identifier: MIT */
/* File names, and what is done with the pages of a chunk. */
#include "ramset.h"

#include <stdio.h>
#include <string.h>

#include "memstate/zero.h"

#define SUFFIX ".ram"
/* Of a name that would be too long: its beginning, then "~" and 16 digits. */
#define KEPT_MAX (RAMSET_NAME_SIZE - 1u - 17u - (sizeof(SUFFIX) - 1))

static bool is_plain(unsigned char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

/* Returns the length that all of it would have. */
static size_t encode(const char *id, char *out, size_t room)
{
    static const char digits[] = "0123456789ABCDEF";
    size_t n = 0;

    for (const unsigned char *p = (const unsigned char *)id; *p; p++) {
        size_t need = is_plain(*p) ? 1 : 3;

        if (n + need <= room && need == 1) {
            out[n] = (char)*p;
        } else if (n + need <= room) {
            out[n] = '%';
            out[n + 1] = digits[*p >> 4];
            out[n + 2] = digits[*p & 15];
        }
        n += need;
    }
    return n;
}

int ramset_file_name(const char *id, char out[RAMSET_NAME_SIZE],
                     struct qstill_error *err)
{
    size_t len = strlen(id);
    size_t n;

    if (len == 0 || len > RAMSET_ID_MAX)
        return err_set(err, QSTILL_E_USAGE,
                       "a RAM block's id has 1 to %u bytes, not %zu",
                       RAMSET_ID_MAX, len);
    n = encode(id, out, RAMSET_NAME_SIZE - sizeof(SUFFIX));
    if (n <= RAMSET_NAME_SIZE - sizeof(SUFFIX))
        snprintf(out + n, RAMSET_NAME_SIZE - n, SUFFIX);
    else
        snprintf(out + KEPT_MAX, RAMSET_NAME_SIZE - KEPT_MAX, "~%016llx" SUFFIX,
                 (unsigned long long)sum_bytes(id, len, 0));
    return 0;
}

bool ramset_is_file_name(const char *name)
{
    size_t len = strlen(name), suffix = sizeof(SUFFIX) - 1;

    return strcmp(name, RAMSET_SUMS_NAME) == 0 ||
           strcmp(name, RAMSET_DEVICE_NAME) == 0 ||
           (len > suffix && strcmp(name + len - suffix, SUFFIX) == 0);
}

uint64_t ramset_scan(const void *data, uint64_t first_page, size_t pages,
                     struct ramset_map *nonzero)
{
    const char *p = data;
    uint64_t sum = 0;

    memset(nonzero, 0, sizeof(*nonzero));
    for (size_t i = 0; i < pages; i++, p += RAMSET_PAGE) {
        if (zero_is(p, RAMSET_PAGE))
            continue;
        ramset_map_set(nonzero, i);
        sum += ramset_page_sum(p, first_page + i);
    }
    return sum;
}

/* The first page at or behind `at` whose bit is `set`; `pages` without one. */
static size_t find_bit(const struct ramset_map *m, size_t pages, size_t at,
                       bool set)
{
    while (at < pages) {
        uint64_t word = m->bits[at / 64];

        word = (set ? word : ~word) >> (at % 64);
        if (word) {
            at += (size_t)__builtin_ctzll(word);
            return at < pages ? at : pages;
        }
        at = (at / 64 + 1) * 64;
    }
    return pages;
}

size_t ramset_map_run(const struct ramset_map *m, size_t pages, size_t *at,
                      size_t *first)
{
    size_t start = find_bit(m, pages, *at, true);
    size_t end = find_bit(m, pages, start, false);

    *first = start;
    *at = end;
    return end - start;
}

void ramset_map_close_gaps(struct ramset_map *m, size_t pages)
{
    size_t at = 0, first, behind;

    if (!ramset_map_run(m, pages, &at, &first))
        return;
    for (behind = at; ramset_map_run(m, pages, &at, &first); behind = at)
        for (size_t i = behind; first - behind <= RAMSET_GAP && i < first; i++)
            ramset_map_set(m, i);
}
