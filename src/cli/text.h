/* SPDX-License-Identifier: MIT */
/* Text for people: safe on a terminal, sizes and times, and tables. */
#ifndef QSTILL_CLI_TEXT_H
#define QSTILL_CLI_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* The length of the UTF-8 character at `s` (of `n` bytes, n > 0); 0 when the
 * bytes are no valid character. */
size_t text_utf8_len(const char *s, size_t n);

/*
 * Prints `s` so that it cannot steer a terminal: control characters, bytes
 * that are not UTF-8 and marks that turn the reading direction come out as
 * \xNN. Returns the columns used (a wide character counts as one).
 */
size_t text_safe(FILE *f, const char *s);
size_t text_safe_n(FILE *f, const char *s, size_t n);

/* The same for text of several lines, each ended by a line break. */
void text_safe_lines(FILE *f, const char *s);

#define TEXT_SIZE_MAX 16
/* "0", "312 KiB", "1.4 GiB". Returns `out`. */
const char *text_size(char out[TEXT_SIZE_MAX], uint64_t bytes);

#define TEXT_TIME_MAX 32
/* An RFC 3339 UTC time as local time "2026-01-31 17:05:09"; what is no such
 * time is copied. Returns `out`. */
const char *text_time(char out[TEXT_TIME_MAX], const char *rfc3339);

/* True when lines may be drawn with box characters. */
bool text_is_utf8(void);

/* A table: cells are kept until the widths are known. */
struct table {
    size_t columns;
    size_t count, room;
    char **cells;      /* count of them, row by row */
    const char *right; /* per column 'r' for right-aligned, else 'l' */
    bool failed;       /* out of memory: seen by table_print */
};

/* `align` has one letter per column and outlives the table. */
void table_init(struct table *t, const char *align);
/* Adds the next cell; NULL is shown as "-". */
void table_cell(struct table *t, const char *text);
void table_cellf(struct table *t, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Prints the rows; 0, or -1 when memory ran out while it was filled. */
int table_print(const struct table *t, FILE *f);
void table_fini(struct table *t);

#endif
