/* SPDX-License-Identifier: MIT */
/*
 * qstill bench merge: a layer of random data is taken out of a chain of three,
 * by our merge in each direction and by qemu-img. Each run has a fresh copy of
 * the chain, read from the disk; its time is until all files are durable, and
 * what a guest sees is compared afterwards.
 *
 *   base (random, all of it) <- mid (an eighth of it, scattered) <- top
 */
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"
#include "bench_vm.h"
#include "qstill-image.h"
#include "run.h"

enum {
    SIZE_DEFAULT = 1 << 30,
    SIZE_MIN = 16 << 20,
    CLUSTER = 64 << 10,
    PIECE = 1 << 20,
    SCATTER = 8,       /* mid has one cluster of so many */
    SCATTER_TOP = 256, /* and top */
};
static const char *const layers[] = {"base", "mid", "top"};
#define FILE_MAX (PATH_MAX + 32) /* of a layer's path */

struct work {
    struct cli *cli;
    char dir[PATH_MAX];
    struct bench_report report;
};

static void work_freep(struct work **w)
{
    if (*w && (*w)->dir[0])
        bench_folder_remove((*w)->dir);
    free(*w);
}

/* A folder or a file of one of the two chains, "new" or "run". */
static const char *place(const struct work *w, const char *chain,
                         const char *layer, char out[FILE_MAX])
{
    snprintf(out, FILE_MAX, "%s/%s%s%s", w->dir, chain, layer ? "/" : "",
             layer ? layer : "");
    return out;
}

static int system_error(const char *what, struct qstill_error *err)
{
    return cli_fail(err, errno == ENOSPC ? QSTILL_E_NO_SPACE : QSTILL_E_FAILED,
                    "%s: %s", what, strerror(errno));
}

/* ------------------------------------------------------------- the chains */

/* One cluster of each `scatter` is random, the others are holes. */
static int write_raw(const char *path, uint64_t size, uint64_t scatter,
                     struct qstill_error *err)
{
    uint64_t seed = 0x2545f4914f6cdd1du + scatter;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    char *data = malloc(CLUSTER);
    bool good = fd >= 0 && data && ftruncate(fd, (off_t)size) == 0;

    for (uint64_t at = 0; good && at < size; at += scatter * CLUSTER) {
        /* a fixed step would make neighbours of what should be scattered */
        uint64_t slot = seed % scatter;

        bench_fill(data, CLUSTER, &seed);
        if (at + (slot + 1) * CLUSTER <= size)
            good = pwrite(fd, data, CLUSTER, (off_t)(at + slot * CLUSTER)) ==
                   CLUSTER;
    }
    if (!good)
        system_error(path, err);
    free(data);
    if (fd >= 0)
        close(fd);
    return good ? 0 : err->code;
}

static int make_layer(struct work *w, size_t i, uint64_t scatter,
                      struct qstill_error *err)
{
    const char *const convert[] = {"qemu-img", "convert", "-q",    "-f",
                                   "raw",      "-O",      "qcow2", "raw",
                                   layers[i],  NULL};
    const char *const rebase[] = {
        "qemu-img", "rebase", "-u",      "-q",
        "-f",       "qcow2",  "-b",      i ? layers[i - 1] : "",
        "-F",       "qcow2",  layers[i], NULL};
    char folder[FILE_MAX], raw[FILE_MAX];

    place(w, "new", NULL, folder);
    if (write_raw(place(w, "new", "raw", raw), w->report.size, scatter, err) <
            0 ||
        bench_run(convert, folder, err) < 0)
        return err->code;
    unlink(raw);
    return i ? bench_run(rebase, folder, err) : 0;
}

static int make_chain(struct work *w, struct qstill_error *err)
{
    static const uint64_t scatter[] = {1, SCATTER, SCATTER_TOP};
    char folder[FILE_MAX];

    if (mkdir(place(w, "new", NULL, folder), 0700) < 0)
        return system_error(folder, err);
    for (size_t i = 0; i < ARRAY_LEN(layers); i++)
        if (make_layer(w, i, scatter[i], err) < 0)
            return err->code;
    return 0;
}

/* By read and write: where the filesystem could share the blocks of a copy,
 * the merge would pay for it. Neither file stays in the page cache. */
static int copy_file(const char *from, const char *to, struct qstill_error *err)
{
    int in = open(from, O_RDONLY | O_CLOEXEC);
    int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    char *piece = malloc(PIECE);
    ssize_t n = in >= 0 && out >= 0 && piece ? 1 : -1;

    while (n > 0) {
        n = read(in, piece, PIECE);
        if (n > 0 && write(out, piece, (size_t)n) != n)
            n = -1;
    }
    if (n == 0)
        n = fsync(out);
    if (n < 0)
        system_error(to, err);
    free(piece);
    if (in >= 0) {
        posix_fadvise(in, 0, 0, POSIX_FADV_DONTNEED);
        close(in);
    }
    if (out >= 0) {
        posix_fadvise(out, 0, 0, POSIX_FADV_DONTNEED);
        close(out);
    }
    return n < 0 ? err->code : 0;
}

static int fresh(struct work *w, struct qstill_error *err)
{
    char from[FILE_MAX], to[FILE_MAX];

    bench_folder_remove(place(w, "run", NULL, to));
    if (mkdir(to, 0700) < 0)
        return system_error(to, err);
    for (size_t i = 0; i < ARRAY_LEN(layers); i++)
        if (copy_file(place(w, "new", layers[i], from),
                      place(w, "run", layers[i], to), err) < 0)
            return err->code;
    sync();
    return 0;
}

/* What was not durable before is so now. */
static int sync_chain(struct work *w, struct qstill_error *err)
{
    char path[FILE_MAX];

    for (size_t i = 0; i < ARRAY_LEN(layers); i++) {
        int fd = open(place(w, "run", layers[i], path), O_RDONLY | O_CLOEXEC);

        if (fd < 0)
            continue; /* that is the layer that went */
        if (fsync(fd) < 0)
            system_error(path, err);
        close(fd);
    }
    return err->code;
}

static int same_content(struct work *w, const char *way,
                        struct qstill_error *err)
{
    char a[FILE_MAX], b[FILE_MAX];
    struct qstill_job *job = NULL;
    uint64_t at = 0;
    bool equal;

    if (qstill_image_compare(place(w, "new", "top", a), "qcow2",
                             place(w, "run", "top", b), "qcow2", &job, err) < 0)
        return err->code;
    if (run_job(w->cli, job, err) == 0) {
        equal = qstill_image_compare_equal(job, &at);
        if (!equal)
            cli_fail(err, QSTILL_E_CORRUPT,
                     "%s has changed what a guest sees at byte %llu", way,
                     (unsigned long long)at);
    }
    qstill_job_free(job);
    return err->code;
}

/* ----------------------------------------------------------------- ways */

struct way {
    const char *name;
    const char *direction; /* of our merge, or NULL */
    const char *cache;     /* of qemu-img */
    bool commit;           /* qemu-img commit, else rebase */
};
static const struct way ways[] = {
    {"auto", "auto", NULL, false},
    {"up", "up", NULL, false},
    {"down", "down", NULL, false},
    {"qemu-img rebase", NULL, "writeback", false},
    {"qemu-img rebase -t none", NULL, "none", false},
    {"qemu-img commit", NULL, "writeback", true},
    {"qemu-img commit -t none", NULL, "none", true},
};

static int merge_ours(struct work *w, const struct way *way,
                      struct bench_row *row, struct qstill_error *err)
{
    struct qstill_image_merge_options o = QSTILL_IMAGE_MERGE_OPTIONS_INIT;
    struct qstill_image_merge_result result;
    char top[FILE_MAX], mid[FILE_MAX];
    const char *drop = place(w, "run", "mid", mid);
    struct qstill_job *job = NULL;
    int r;

    o.drop = &drop;
    o.drop_count = 1;
    o.direction = way->direction;
    if (qstill_image_merge(place(w, "run", "top", top), &o, &job, err) < 0)
        return err->code;
    r = run_job(w->cli, job, err);
    if (r == 0) {
        qstill_image_merge_result(job, &result);
        row->bytes = result.bytes_moved;
    }
    qstill_job_free(job);
    return r;
}

/* mid goes as well: that is part of the work. */
static int merge_qemu(struct work *w, const struct way *way,
                      struct qstill_error *err)
{
    const char *const rebase[] = {"qemu-img", "rebase",   "-f",  "qcow2",
                                  "-t",       way->cache, "-b",  "base",
                                  "-F",       "qcow2",    "top", NULL};
    const char *const commit[] = {"qemu-img", "commit", "-q", "-d",
                                  "-f",       "qcow2",  "-t", way->cache,
                                  "mid",      NULL};
    const char *const repoint[] = {"qemu-img", "rebase", "-u",   "-f",
                                   "qcow2",    "-b",     "base", "-F",
                                   "qcow2",    "top",    NULL};
    char folder[FILE_MAX], mid[FILE_MAX];

    place(w, "run", NULL, folder);
    if (way->commit ? bench_run(commit, folder, err) < 0 ||
                          bench_run(repoint, folder, err) < 0
                    : bench_run(rebase, folder, err) < 0)
        return err->code;
    unlink(place(w, "run", "mid", mid));
    return 0;
}

static int one_merge(struct work *w, const struct way *way,
                     struct bench_row *row, struct qstill_error *err)
{
    double from;
    int r;

    if (run_cancelled(err) < 0 || fresh(w, err) < 0)
        return err->code;
    from = bench_now_ms();
    r = way->direction ? merge_ours(w, way, row, err) : merge_qemu(w, way, err);
    if (r < 0 || sync_chain(w, err) < 0)
        return err->code;
    bench_add(&row->ms, bench_now_ms() - from);
    return same_content(w, way->name, err);
}

static int one_way(struct work *w, const struct way *way,
                   struct qstill_error *err)
{
    struct bench_row *row = bench_row(&w->report, way->name, way->direction);

    for (size_t i = 0; i < w->report.reps; i++)
        if (one_merge(w, way, row, err) < 0)
            return err->code == QSTILL_E_CORRUPT ? err->code
                                                 : bench_skip(row, err);
    return 0;
}

/* ------------------------------------------------------------------- verb */

static int merge_run(struct cli *cli, const struct args *args,
                     struct qstill_error *err)
{
    CLEANUP(work_freep) struct work *w = calloc(1, sizeof(*w));
    const char *dir = args_text(args, "dir");
    uint64_t size = args_number(args, "size");
    bool quiet = cli->quiet;

    if (!w)
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    w->cli = cli;
    w->report.what = "merge";
    w->report.unit = "taking a layer out of a chain, until it is durable";
    w->report.size = (size ? size : SIZE_DEFAULT) / CLUSTER * CLUSTER;
    if (bench_reps(cli, args, &w->report.reps, err) < 0)
        return err->code;
    if (w->report.size < SIZE_MIN)
        return cli_usage(cli, err, "--size: at least %d MiB", SIZE_MIN >> 20);
    run_prepare(cli);
    cli->quiet = true; /* no progress of the jobs */
    if (bench_folder(dir ? dir : ".", w->dir, err) == 0 &&
        make_chain(w, err) == 0)
        for (size_t i = 0; i < ARRAY_LEN(ways); i++)
            if (one_way(w, &ways[i], err) < 0)
                break;
    cli->quiet = quiet;
    return err->code < 0 ? err->code : bench_show(cli, &w->report, err);
}

static const struct option_spec merge_options[] = {
    {"size", "SIZE", OPTION_SIZE, false, "of the disk (default: 1G)"},
    {"reps", "N", OPTION_NUMBER, false, "of each measurement (default: 3)"},
    {"dir", "DIR", OPTION_FILE, false,
     "where the files go, and go away (default: here)"},
    {0},
};

const struct verb verb_bench_merge = {
    .name = "bench merge",
    .summary = "Measures merges of disk layers, and qemu-img's beside them",
    .options = merge_options,
    .run = merge_run,
};
