/* SPDX-License-Identifier: MIT */
/* The records of a journal, as text. */
#include "merge_journal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/sum.h"

#define FIRST_WORD "qstill-merge"
#define VERSION    2 /* 1: without times, and by absolute paths only */

static const char *const kinds[] = {
    [MERGE_IN_PLACE] = "in-place",
    [MERGE_NEW_FILE] = "new-file",
    [MERGE_INTO_RAW] = "into-raw",
    [MERGE_OVERWRITE] = "overwrite",
};

static void file_fini(struct merge_file *f)
{
    free(f->path);
}

void merge_record_fini(struct merge_record *r)
{
    file_fini(&r->target);
    file_fini(&r->result);
    file_fini(&r->upper);
    free(r->old_backing);
    free(r->new_backing);
    for (size_t i = 0; i < r->gone_count; i++)
        file_fini(&r->gone[i]);
    free(r->gone);
    for (size_t i = 0; i < r->repoint_count; i++) {
        file_fini(&r->repoint[i].file);
        free(r->repoint[i].backing);
        free(r->repoint[i].format);
    }
    free(r->repoint);
    *r = (struct merge_record){0};
}

void merge_asked_fini(struct merge_asked *a)
{
    for (size_t i = 0; i < a->n; i++)
        file_fini(&a->v[i]);
    free(a->v);
    free(a->top);
    *a = (struct merge_asked){0};
}

/* -------------------------------------------------------------------- emit */

static int put_word(struct buf *out, const char *s)
{
    if (buf_puts(out, " ") < 0 || (!*s && buf_puts(out, "%") < 0))
        return -1;
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        bool plain = c > ' ' && c < 0x7f && c != '%';

        if ((plain ? buf_append_u8(out, c) : buf_printf(out, "%%%02x", c)) < 0)
            return -1;
    }
    return 0;
}

/* As it is named in the directory, if it is in it. */
static const char *name_in(const char *dir, const char *path)
{
    const char *slash = strrchr(path, '/');
    char *parent = slash > path ? strndup(path, (size_t)(slash - path)) : NULL;
    struct stat a, b;
    bool in = parent && stat(parent, &a) == 0 && stat(dir, &b) == 0 &&
              a.st_dev == b.st_dev && a.st_ino == b.st_ino;

    free(parent);
    return in ? slash + 1 : path;
}

static int put_file(struct buf *out, const char *key, const char *dir,
                    const struct merge_file *f)
{
    if (!f->path)
        return 0;
    return buf_printf(out, "%s %" PRIu64 " %" PRIu64 " %" PRId64 " %" PRId64,
                      key, f->id.dev, f->id.ino, f->id.born_ns,
                      f->id.mtime_ns) ||
           put_word(out, name_in(dir, f->path));
}

int merge_asked_emit(const struct merge_asked *a, const char *dir,
                     struct buf *out, struct qstill_error *err)
{
    if (buf_puts(out, "top") < 0 || put_word(out, name_in(dir, a->top)) < 0 ||
        buf_puts(out, "\n") < 0)
        return err_nomem(err);
    for (size_t i = 0; i < a->n; i++)
        if (put_file(out, a->v[i].is_child ? "child" : "asked", dir,
                     &a->v[i]) ||
            buf_puts(out, "\n") < 0)
            return err_nomem(err);
    return 0;
}

static int put_record(const struct merge_record *r, const char *dir,
                      struct buf *out)
{
    if (buf_printf(out, FIRST_WORD " %d\nkind ", VERSION) ||
        buf_puts(out, kinds[r->kind]) || buf_puts(out, "\n") ||
        put_file(out, "target", dir, &r->target) || buf_puts(out, "\n") ||
        put_file(out, "result", dir, &r->result) || buf_puts(out, "\n") ||
        put_file(out, "upper", dir, &r->upper) || buf_puts(out, "\n") ||
        buf_printf(out,
                   "state %" PRId64 " %" PRIu64 " %" PRIu64 " %" PRIu64
                   " %" PRIu64,
                   r->result_mtime_ns, r->result_size, r->old_size, r->old_l1,
                   r->new_l1) ||
        buf_puts(out, "\nbacking") ||
        put_word(out, r->old_backing ? r->old_backing : "") ||
        put_word(out, r->new_backing ? r->new_backing : "") ||
        buf_puts(out, "\n"))
        return -1;
    for (size_t i = 0; i < r->gone_count; i++)
        if (put_file(out, "gone", dir, &r->gone[i]) || buf_puts(out, "\n"))
            return -1;
    for (size_t i = 0; i < r->repoint_count; i++)
        if (put_file(out, "repoint", dir, &r->repoint[i].file) ||
            put_word(out, r->repoint[i].backing) ||
            put_word(out, r->repoint[i].format) || buf_puts(out, "\n"))
            return -1;
    return 0;
}

int merge_record_emit(const struct merge_record *r, const char *dir,
                      struct buf *out, struct qstill_error *err)
{
    size_t from = out->len;

    if (put_record(r, dir, out) < 0 ||
        buf_printf(out, "sum %016" PRIx64 "\n",
                   sum_bytes(out->data + from, out->len - from, 0)) < 0)
        return err_nomem(err);
    return 0;
}

/* ------------------------------------------------------------------- parse */

static int bad(struct qstill_error *err)
{
    return err_set(err, QSTILL_E_CORRUPT,
                   "the journal of a merge is not understood");
}

static char *unescape(const char *s)
{
    char *out = strdup(strcmp(s, "%") == 0 ? "" : s), *to = out;

    if (!out)
        return NULL;
    for (const char *p = out; *p; p++) {
        unsigned c;

        if (*p == '%' && sscanf(p + 1, "%2x", &c) == 1 && c != 0) {
            *to++ = (char)c;
            p += 2;
        } else {
            *to++ = *p;
        }
    }
    *to = '\0';
    return out;
}

/* The words of a line, in place; at most 8. */
static size_t split(char *line, char *words[8])
{
    size_t n = 0;
    char *save = NULL;

    for (char *w = strtok_r(line, " ", &save); w && n < 8;
         w = strtok_r(NULL, " ", &save))
        words[n++] = w;
    return n;
}

/* What a record is read with. */
struct reading {
    struct merge_record *r;
    const char *dir;
    int version;
};

static size_t path_word(const struct reading *in)
{
    return in->version == 1 ? 3 : 5;
}

static int get_path(const struct reading *in, const char *word, char **out,
                    struct qstill_error *err)
{
    CLEANUP(freep) char *name = unescape(word);

    if (!name)
        return err_nomem(err);
    if (name[0] == '/')
        *out = take_ptr(&name);
    else if (in->version == 1 || !name[0] || strchr(name, '/'))
        return bad(err);
    else if (asprintf(out, "%s/%s", in->dir, name) < 0)
        *out = NULL;
    return *out ? 0 : err_nomem(err);
}

static int get_file(const struct reading *in, struct merge_file *f,
                    char *const words[], size_t n, struct qstill_error *err)
{
    if (n <= path_word(in) || f->path)
        return bad(err);
    f->id.dev = strtoull(words[1], NULL, 10);
    f->id.ino = strtoull(words[2], NULL, 10);
    if (in->version > 1) {
        f->id.born_ns = strtoll(words[3], NULL, 10);
        f->id.mtime_ns = strtoll(words[4], NULL, 10);
    }
    return get_path(in, words[path_word(in)], &f->path, err);
}

static int add_gone(const struct reading *in, char *const words[], size_t n,
                    struct qstill_error *err)
{
    struct merge_record *r = in->r;
    struct merge_file *v = realloc(r->gone, (r->gone_count + 1) * sizeof(*v));

    if (!v)
        return err_nomem(err);
    r->gone = v;
    v[r->gone_count] = (struct merge_file){0};
    return get_file(in, &v[r->gone_count++], words, n, err);
}

static int add_repoint(const struct reading *in, char *const words[], size_t n,
                       struct qstill_error *err)
{
    struct merge_record *r = in->r;
    struct merge_repoint *v =
        realloc(r->repoint, (r->repoint_count + 1) * sizeof(*v));

    if (!v)
        return err_nomem(err);
    r->repoint = v;
    v += r->repoint_count++;
    *v = (struct merge_repoint){0};
    if (n < path_word(in) + 3)
        return bad(err);
    v->backing = unescape(words[path_word(in) + 1]);
    v->format = unescape(words[path_word(in) + 2]);
    if (!v->backing || !v->format)
        return err_nomem(err);
    return get_file(in, &v->file, words, n, err);
}

static int parse_kind(struct merge_record *r, const char *word,
                      struct qstill_error *err)
{
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        if (strcmp(word, kinds[i]) == 0) {
            r->kind = (enum merge_kind)i;
            return 0;
        }
    return bad(err);
}

static int parse_line(const struct reading *in, char *line,
                      struct qstill_error *err)
{
    struct merge_record *r = in->r;
    char *w[8];
    size_t n = split(line, w);

    if (n == 0)
        return 0;
    if (strcmp(w[0], "kind") == 0 && n == 2)
        return parse_kind(r, w[1], err);
    if (strcmp(w[0], "target") == 0)
        return get_file(in, &r->target, w, n, err);
    if (strcmp(w[0], "result") == 0)
        return get_file(in, &r->result, w, n, err);
    if (strcmp(w[0], "upper") == 0)
        return get_file(in, &r->upper, w, n, err);
    if (strcmp(w[0], "gone") == 0)
        return add_gone(in, w, n, err);
    if (strcmp(w[0], "repoint") == 0)
        return add_repoint(in, w, n, err);
    if (strcmp(w[0], "went") == 0 && n == 2) /* merge_asked_parse() */
        return 0;
    if (strcmp(w[0], "state") == 0 && n == 6) {
        r->result_mtime_ns = strtoll(w[1], NULL, 10);
        r->result_size = strtoull(w[2], NULL, 10);
        r->old_size = strtoull(w[3], NULL, 10);
        r->old_l1 = strtoull(w[4], NULL, 10);
        r->new_l1 = strtoull(w[5], NULL, 10);
        return 0;
    }
    if (strcmp(w[0], "backing") == 0 && n == 3 && !r->old_backing) {
        r->old_backing = unescape(w[1]);
        r->new_backing = unescape(w[2]);
        return r->old_backing && r->new_backing ? 0 : err_nomem(err);
    }
    return bad(err);
}

/* "made DEV INO BORN SUM": the sum is over what stands before it. */
static void parse_made(struct merge_record *r, const char *line)
{
    const char *end = line + strcspn(line, "\n");
    const char *last = end;
    struct merge_id id = {0};
    uint64_t sum;

    while (last > line && *last != ' ')
        last--;
    if (sscanf(last, " %" SCNx64, &sum) != 1 ||
        sum_bytes(line, (size_t)(last - line), 0) != sum ||
        sscanf(line, "made %" SCNu64 " %" SCNu64 " %" SCNd64, &id.dev, &id.ino,
               &id.born_ns) < 2)
        return;
    r->made = id;
}

/* The lines of a record, without its sum; they are spoilt. */
static int parse_lines(struct merge_record *r, const char *dir, char *text,
                       struct qstill_error *err)
{
    struct reading in = {r, dir, 0};
    char *save = NULL;

    if (sscanf(text, FIRST_WORD " %d", &in.version) != 1 || in.version < 1 ||
        in.version > VERSION)
        return bad(err); /* of a newer version */
    strtok_r(text, "\n", &save);
    for (char *l = strtok_r(NULL, "\n", &save); l;
         l = strtok_r(NULL, "\n", &save))
        if (parse_line(&in, l, err) < 0)
            return err->code;
    if (!r->target.path || !r->result.path || !r->old_backing ||
        ((r->kind == MERGE_INTO_RAW || r->kind == MERGE_OVERWRITE) &&
         !r->upper.path))
        return bad(err);
    return 0;
}

/* The line of the sum of the record that starts at `text`, when it is right;
 * else NULL. */
static char *find_sum(char *text)
{
    char *end = strstr(text, "\nsum ");
    uint64_t sum;

    if (!end || sscanf(end, "\nsum %16" SCNx64, &sum) != 1 ||
        sum_bytes(text, (size_t)(end + 1 - text), 0) != sum)
        return NULL;
    return end + 1;
}

static char *next_line(char *at)
{
    at += strcspn(at, "\n");
    return at + (*at == '\n');
}

/* Where the records begin: behind the whole lines that are none of theirs. */
static char *find_records(char *text)
{
    while (strncmp(text, FIRST_WORD " ", strlen(FIRST_WORD " ")) != 0) {
        char *end = strchr(text, '\n');

        if (!end)
            break;
        text = end + 1;
    }
    return text;
}

int merge_record_parse(struct merge_record *r, const char *dir,
                       const uint8_t *data, size_t len, size_t *start,
                       size_t *used, struct qstill_error *err)
{
    CLEANUP(freep) char *text = strndup((const char *)data, len);
    char *last = NULL, *last_sum = NULL, *rest;

    if (!text)
        return err_nomem(err);
    rest = find_records(text);
    *start = *used = (size_t)(rest - text);
    for (char *sum; (sum = find_sum(rest));) {
        last = rest;
        last_sum = sum;
        rest = next_line(sum);
        if (strncmp(rest, "made ", 5) == 0)
            rest = next_line(rest);
    }
    if (!last)
        return 0;
    parse_made(r, next_line(last_sum));
    *last_sum = '\0';
    if (parse_lines(r, dir, last, err) < 0)
        return err->code;
    *used = (size_t)(rest - text);
    return 0;
}

/* ------------------------------------------------------------------- asked */

static int add_asked(const struct reading *in, struct merge_asked *a,
                     char *const words[], size_t n, struct qstill_error *err)
{
    struct merge_file f = {0};
    struct merge_file *v;

    if (get_file(in, &f, words, n, err) < 0)
        return err->code;
    v = realloc(a->v, (a->n + 1) * sizeof(*v));
    if (!v) {
        file_fini(&f);
        return err_nomem(err);
    }
    a->v = v;
    f.is_child = strcmp(words[0], "child") == 0;
    v[a->n++] = f;
    return 0;
}

static int parse_asked_line(const struct reading *in, struct merge_asked *a,
                            char *line, struct qstill_error *err)
{
    char *w[8];
    size_t n = split(line, w);

    if (n == 2 && strcmp(w[0], "top") == 0 && !a->top)
        return get_path(in, w[1], &a->top, err);
    return n > 0 && (strcmp(w[0], "asked") == 0 || strcmp(w[0], "child") == 0)
               ? add_asked(in, a, w, n, err)
               : 0;
}

/* Of an older journal, whole or cut off: what went, or was to go. The path
 * stands last. */
static int parse_old_line(const struct reading *in, struct merge_asked *a,
                          char *line, struct qstill_error *err)
{
    char zero[] = "0", *last = strrchr(line, ' ');
    char *w[] = {line, zero, zero, zero, zero, last ? last + 1 : NULL};

    return last && (strncmp(line, "went ", 5) == 0 ||
                    strncmp(line, "gone ", 5) == 0 ||
                    strncmp(line, "target ", 7) == 0)
               ? add_asked(in, a, w, ARRAY_LEN(w), err)
               : 0;
}

int merge_asked_parse(struct merge_asked *a, const char *dir,
                      const uint8_t *data, size_t len, size_t *start,
                      struct qstill_error *err)
{
    struct reading in = {NULL, dir, VERSION};
    CLEANUP(freep) char *text = strndup((const char *)data, len);
    char *records, *save = NULL;
    bool old;

    if (!text)
        return err_nomem(err);
    records = find_records(text);
    *start = (size_t)(records - text);
    old = strncmp(text, "top ", 4) != 0;
    if (!old)
        *records = '\0';
    for (char *l = strtok_r(text, "\n", &save); l;
         l = strtok_r(NULL, "\n", &save))
        if ((old ? parse_old_line : parse_asked_line)(&in, a, l, err) < 0 &&
            err->code != QSTILL_E_CORRUPT)
            return err->code;
    return err_clear(err);
}
