/* SPDX-License-Identifier: MIT */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "run.h"
#include "text.h"

void bench_add(struct bench_samples *s, double v)
{
    if (s->n < BENCH_REPS_MAX)
        s->v[s->n++] = v;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double bench_median(const struct bench_samples *s)
{
    struct bench_samples sorted = *s;

    if (s->n == 0)
        return 0;
    qsort(sorted.v, s->n, sizeof(*sorted.v), by_value);
    return (sorted.v[(s->n - 1) / 2] + sorted.v[s->n / 2]) / 2;
}

double bench_max(const struct bench_samples *s)
{
    double max = 0;

    for (size_t i = 0; i < s->n; i++)
        max = s->v[i] > max ? s->v[i] : max;
    return max;
}

static double smallest(const struct bench_samples *s)
{
    double min = s->n ? s->v[0] : 0;

    for (size_t i = 1; i < s->n; i++)
        min = s->v[i] < min ? s->v[i] : min;
    return min;
}

struct bench_row *bench_row(struct bench_report *r, const char *name, bool ours)
{
    struct bench_row *row = &r->rows[r->count++];

    memset(row, 0, sizeof(*row));
    row->name = name;
    row->ours = ours;
    return row;
}

int bench_skip(struct bench_row *row, struct qstill_error *err)
{
    if (err->code == QSTILL_E_CANCELLED)
        return err->code;
    snprintf(row->skipped, sizeof(row->skipped), "%.255s", err->message);
    memset(err, 0, sizeof(*err));
    return 0;
}

int bench_reps(const struct cli *cli, const struct args *args, size_t *out,
               struct qstill_error *err)
{
    uint64_t n = args_number(args, "reps");

    *out = n ? (size_t)n : BENCH_REPS_DEFAULT;
    if (n > BENCH_REPS_MAX)
        return cli_usage(cli, err, "--reps: at most %d", BENCH_REPS_MAX);
    return 0;
}

int bench_job(struct cli *cli, struct qstill_job *job, struct qstill_error *err)
{
    bool quiet = cli->quiet;
    int r;

    cli->quiet = true;
    r = run_job(cli, job, err);
    cli->quiet = quiet;
    qstill_job_free(job);
    return r;
}

/* ------------------------------------------------------------------- JSON */

static void samples_json(struct out *o, const char *key,
                         const struct bench_samples *s)
{
    out_object(o, key);
    out_real(o, "median", bench_median(s));
    out_real(o, "min", smallest(s));
    out_real(o, "max", bench_max(s));
    out_array(o, "all");
    for (size_t i = 0; i < s->n; i++)
        out_real(o, NULL, s->v[i]);
    out_end(o);
    out_end(o);
}

/* The measure: the first way of ours that was gone. */
static double measure(const struct bench_report *r)
{
    for (size_t i = 0; i < r->count; i++)
        if (r->rows[i].ours && r->rows[i].ms.n)
            return bench_median(&r->rows[i].ms);
    return 0;
}

static void row_json(struct out *o, const struct bench_report *r,
                     const struct bench_row *row)
{
    double ours = measure(r);

    out_object(o, NULL);
    out_text(o, "name", row->name);
    out_bool(o, "ours", row->ours);
    out_text(o, "skipped", row->skipped[0] ? row->skipped : NULL);
    if (row->ms.n) {
        samples_json(o, "ms", &row->ms);
        if (row->pause.n)
            samples_json(o, "pauseMs", &row->pause);
        if (row->bytes)
            out_uint(o, "bytes", row->bytes);
        if (ours > 0)
            out_real(o, "ratio", bench_median(&row->ms) / ours);
    }
    out_end(o);
}

static void stalls_json(struct out *o, const char *key,
                        const struct bench_report *r,
                        const struct guest_took *t, uint64_t slowest)
{
    out_object(o, key);
    out_uint(o, "slowest", slowest);
    out_real(o, "p50Ms", guest_slowest_ms(t, slowest, 0.5));
    out_real(o, "p99Ms", guest_slowest_ms(t, slowest, 0.99));
    out_real(o, "worstMs", guest_slowest_ms(t, 1, 1));
    out_array(o, "histogram");
    for (double ms = 1.0 / 64; ms < 4096; ms *= 2) {
        uint64_t n = guest_count(t, ms, 2 * ms);

        if (n == 0)
            continue;
        out_object(o, NULL);
        out_real(o, "fromMs", ms);
        out_real(o, "toMs", 2 * ms);
        out_uint(o, "writes", n);
        out_end(o);
    }
    out_end(o);
    out_end(o);
    (void)r;
}

static void show_json(const struct bench_report *r)
{
    struct out o = OUT_INIT(stdout);

    out_object(&o, NULL);
    out_text(&o, "benchmark", r->what);
    if (r->accel)
        out_text(&o, "accel", r->accel);
    out_uint(&o, "size", r->size);
    out_uint(&o, "reps", r->reps);
    out_array(&o, "ways");
    for (size_t i = 0; i < r->count; i++)
        row_json(&o, r, &r->rows[i]);
    out_end(&o);
    if (r->has_stalls) {
        stalls_json(&o, "stalls", r, &r->stalls, r->slowest);
        stalls_json(&o, "stallsIdle", r, &r->idle, GUEST_PAGES);
    }
    out_end(&o);
}

/* ------------------------------------------------------------------ table */

static void row_cells(struct table *t, const struct bench_report *r,
                      const struct bench_row *row)
{
    double ours = measure(r), mine = bench_median(&row->ms);

    table_cell(t, row->name);
    table_cellf(t, "%.1f", mine);
    table_cellf(t, "%.1f", smallest(&row->ms));
    table_cellf(t, "%.1f", bench_max(&row->ms));
    if (row->pause.n)
        table_cellf(t, "%.1f", bench_median(&row->pause));
    else
        table_cell(t, NULL);
    table_cellf(t, "%.2f", ours > 0 ? mine / ours : 0.0);
}

static int show_rows(const struct bench_report *r, struct qstill_error *err)
{
    static const char *const heads[] = {"WAY", "MEDIAN", "MIN",
                                        "MAX", "PAUSE",  "RATIO"};
    struct table t;
    int bad;

    table_init(&t, "lrrrrr");
    for (size_t i = 0; i < ARRAY_LEN(heads); i++)
        table_cell(&t, heads[i]);
    for (size_t i = 0; i < r->count; i++)
        if (r->rows[i].ms.n)
            row_cells(&t, r, &r->rows[i]);
    bad = table_print(&t, stdout);
    table_fini(&t);
    if (bad)
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    for (size_t i = 0; i < r->count; i++)
        if (r->rows[i].skipped[0]) {
            printf("%s: not measured: ", r->rows[i].name);
            text_safe(stdout, r->rows[i].skipped);
            putchar('\n');
        }
    return 0;
}

static void show_stalls(const char *title, const struct guest_took *t,
                        uint64_t slowest)
{
    static const char bar[] = "########################################";
    uint64_t most = 1;

    printf("\n%s: of the %llu slowest p50 %.3f ms, p99 %.3f ms; worst "
           "%.3f ms\n",
           title, (unsigned long long)slowest,
           guest_slowest_ms(t, slowest, 0.5),
           guest_slowest_ms(t, slowest, 0.99), guest_slowest_ms(t, 1, 1));
    for (double ms = 1.0 / 64; ms < 4096; ms *= 2)
        if (guest_count(t, ms, 2 * ms) > most)
            most = guest_count(t, ms, 2 * ms);
    for (double ms = 1.0 / 64; ms < 4096; ms *= 2) {
        uint64_t n = guest_count(t, ms, 2 * ms);

        if (n)
            printf("%9.3f to %9.3f ms %9llu %.*s\n", ms, 2 * ms,
                   (unsigned long long)n,
                   (int)(1 + n * (sizeof(bar) - 2) / most), bar);
    }
}

int bench_show(const struct cli *cli, const struct bench_report *r,
               struct qstill_error *err)
{
    char size[TEXT_SIZE_MAX];

    if (cli->json) {
        show_json(r);
        return 0;
    }
    printf("%s, %s%s%s, %zu times; milliseconds of %s\n", r->what,
           text_size(size, r->size), r->accel ? ", " : "",
           r->accel ? r->accel : "", r->reps, r->unit);
    if (show_rows(r, err) < 0)
        return err->code;
    if (r->has_stalls) {
        show_stalls("stalls of the guest's writes", &r->stalls, r->slowest);
        show_stalls("without a snapshot", &r->idle, GUEST_PAGES);
    }
    return 0;
}
