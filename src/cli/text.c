/* SPDX-License-Identifier: MIT */
/* Names, paths and messages come from disks and peers: nothing here trusts
 * them to be printable. */
#include "text.h"

#include <langinfo.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint32_t utf8_decode(const char *s, size_t len)
{
    const unsigned char *u = (const unsigned char *)s;
    uint32_t cp = len == 1 ? u[0] : u[0] & (0x7fu >> len);

    for (size_t i = 1; i < len; i++)
        cp = cp << 6 | (u[i] & 0x3fu);
    return cp;
}

size_t text_utf8_len(const char *s, size_t n)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *u = (const unsigned char *)s;
    size_t len = u[0] < 0x80   ? 1
                 : u[0] < 0xc2 ? 0
                 : u[0] < 0xe0 ? 2
                 : u[0] < 0xf0 ? 3
                 : u[0] < 0xf5 ? 4
                               : 0;
    uint32_t cp;

    if (len > n)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((u[i] & 0xc0) != 0x80)
            return 0;
    if (len < 2)
        return len;
    cp = utf8_decode(s, len);
    if (cp < least[len] || cp > 0x10ffff || (cp >= 0xd800 && cp < 0xe000))
        return 0;
    return len;
}

/* C0, DEL, C1, and the bidirectional controls */
static bool steers(uint32_t cp)
{
    return cp < 0x20 || (cp >= 0x7f && cp < 0xa0) || cp == 0x061c ||
           cp == 0x200e || cp == 0x200f || (cp >= 0x2028 && cp <= 0x202e) ||
           (cp >= 0x2066 && cp <= 0x2069) || cp == 0xfeff;
}

size_t text_safe_n(FILE *f, const char *s, size_t n)
{
    size_t columns = 0;

    while (n > 0) {
        size_t len = text_utf8_len(s, n);

        if (len > 0 && !steers(utf8_decode(s, len))) {
            fwrite(s, 1, len, f);
            columns++;
        } else {
            len = len ? len : 1;
            for (size_t i = 0; i < len; i++)
                fprintf(f, "\\x%02x", (unsigned char)s[i]);
            columns += 4 * len;
        }
        s += len;
        n -= len;
    }
    return columns;
}

size_t text_safe(FILE *f, const char *s)
{
    return text_safe_n(f, s, strlen(s));
}

void text_safe_lines(FILE *f, const char *s)
{
    while (*s) {
        size_t n = strcspn(s, "\n");

        text_safe_n(f, s, n);
        fputc('\n', f);
        s += n + (s[n] == '\n');
    }
}

const char *text_size(char out[TEXT_SIZE_MAX], uint64_t bytes)
{
    static const char *const units[] = {"B",   "KiB", "MiB", "GiB",
                                        "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t u = 0;

    while (value >= 1023.5 && u + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024;
        u++;
    }
    if (bytes == 0)
        snprintf(out, TEXT_SIZE_MAX, "0");
    else
        snprintf(out, TEXT_SIZE_MAX, u && value < 9.95 ? "%.1f %s" : "%.0f %s",
                 value, units[u]);
    return out;
}

const char *text_time(char out[TEXT_TIME_MAX], const char *rfc3339)
{
    struct tm tm = {0};
    const char *end = strptime(rfc3339, "%Y-%m-%dT%H:%M:%S", &tm);
    time_t t;

    snprintf(out, TEXT_TIME_MAX, "%s", rfc3339);
    if (!end || !strchr(end, 'Z'))
        return out;
    t = timegm(&tm);
    if (localtime_r(&t, &tm))
        strftime(out, TEXT_TIME_MAX, "%Y-%m-%d %H:%M:%S", &tm);
    return out;
}

bool text_is_utf8(void)
{
    return strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}

void table_init(struct table *t, const char *align)
{
    *t = (struct table){.columns = strlen(align), .right = align};
}

static void add_cell(struct table *t, char *owned)
{
    if (t->count == t->room) {
        size_t room = t->room ? t->room * 2 : 64;
        char **grown = reallocarray(t->cells, room, sizeof(*grown));

        if (!grown) {
            free(owned);
            t->failed = true;
            return;
        }
        t->cells = grown;
        t->room = room;
    }
    if (!owned)
        t->failed = true;
    t->cells[t->count++] = owned;
}

/* What text_safe makes of `text`, in memory. */
static char *safe_copy(const char *text, size_t *columns)
{
    char *copy = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&copy, &size);

    if (!f)
        return NULL;
    *columns = text_safe(f, text);
    if (fclose(f) != 0) {
        free(copy);
        return NULL;
    }
    return copy;
}

void table_cell(struct table *t, const char *text)
{
    size_t columns;

    add_cell(t, safe_copy(text ? text : "-", &columns));
}

void table_cellf(struct table *t, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    table_cell(t, text);
}

static int cell_width(const char *cell)
{
    int width = 0;

    for (; *cell; cell++)
        width += ((unsigned char)*cell & 0xc0) != 0x80;
    return width;
}

static int column_width(const struct table *t, size_t column)
{
    int widest = 0;

    for (size_t i = column; i < t->count; i += t->columns) {
        int width = cell_width(t->cells[i]);

        widest = width > widest ? width : widest;
    }
    return widest;
}

/* Blanks are put before a cell, so that no row ends with some. */
static void print_row(const struct table *t, size_t first, const int *widths,
                      FILE *f)
{
    int at = 0, start = 0;

    for (size_t c = 0; c < t->columns; c++) {
        const char *cell = t->cells[first + c];
        int width = cell_width(cell);
        int from = start + (t->right[c] == 'r' ? widths[c] - width : 0);

        if (*cell) {
            fprintf(f, "%*s%s", from - at, "", cell);
            at = from + width;
        }
        start += widths[c] + 2;
    }
    fputc('\n', f);
}

int table_print(const struct table *t, FILE *f)
{
    int *widths;

    if (t->failed || !(widths = calloc(t->columns, sizeof(*widths))))
        return -1;
    for (size_t c = 0; c < t->columns; c++)
        widths[c] = column_width(t, c);
    for (size_t i = 0; i + t->columns <= t->count; i += t->columns)
        print_row(t, i, widths, f);
    free(widths);
    return 0;
}

void table_fini(struct table *t)
{
    for (size_t i = 0; i < t->count; i++)
        free(t->cells[i]);
    free(t->cells);
    *t = (struct table){0};
}
