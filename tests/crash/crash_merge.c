/* SPDX-License-Identifier: MIT */
/*
 * The proof that a merge loses nothing: one merge, recorded at the I/O seam,
 * then every state that a crash could leave of it, recovered and judged.
 *
 *     crash_merge [-n SUBSETS] [-s SEED] [-q EVERY] [-l UPPER]
 *                 DIR TOP DIRECTION LAYER...
 *
 * -l UPPER: the result of folding UPPER gets the name of the last LAYER
 * (lower_name); that may be a raw image, which can only be rolled forward.
 *
 * 1. every prefix of the operations: with all of them done (a killed process),
 *    and with all lost that no sync covers (a power cut);
 * 2. for every interval between two syncs SUBSETS random cuts: any subset of
 *    the writes, torn at sectors, one lost, one kept, names cut off;
 * 3. the recovery of some of these, cut itself at every point;
 * 4. the n-th call of each kind failing with EIO or ENOSPC, once or for good;
 * 5. a cancel after the n-th step.
 *
 * Judged, by the naive reader (and by qemu-img every EVERY states): before the
 * recovery every file that survives the merge reads as ever (upwards with -l
 * the lowest and UPPER, too, while they are there), and up to the flip one that
 * goes reads as one of them did or is marked as torn; after it every file that
 * is there reads as ever, refcounts are right, nothing is left behind (but the
 * journal exactly while some of what was to go has gone and some has not), and
 * the same merge can be done again. The directory is spoilt afterwards; after a
 * failure it holds the state that failed. Ends with a line of counts.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "qcow2/merge.h"

#include "../lib/fault_io.h"
#include "../lib/memio_dir.h"
#include "../lib/naive_image.h"
#include "../lib/record_io.h"

#define MAX_FILES 32

struct file {
    char *name;
    bool qcow2;
    bool drop;
    bool may_go;
    bool upper; /* it goes as it gets the lowest name */
    uint64_t hash;
    uint64_t other; /* what it may read like instead, or 0 */
};

struct proof {
    const char *dir;
    const char *top;
    enum merge_direction direction;
    unsigned subsets;
    unsigned qemu_every;
    uint64_t seed;
    struct file files[MAX_FILES];
    size_t n;
    char paths[MAX_FILES][4096]; /* of the dropped layers */
    const char *drop[MAX_FILES];
    size_t drop_count;
    bool lower_name;
    bool upwards; /* and the upper image's file stays */
    bool raw;     /* the lowest layer is, and gets the result */
    struct record *record;
    /* counts */
    unsigned long states, recovered, rolled_back, leaky, nested, faults,
        cancels, qemu, torn, marked, between;
    char what[256]; /* the state under judgement */
};

static void fail(const struct proof *p, const char *why)
{
    fprintf(stderr, "crash_merge: seed %llu, %s: %s\nkept in %s\n",
            (unsigned long long)p->seed, p->what, why, p->dir);
    exit(1);
}

static void fail_with(const struct proof *p, const char *why,
                      const struct qstill_error *err)
{
    char text[1024];

    snprintf(text, sizeof(text), "%s: %s", why, err->message);
    fail(p, text);
}

static struct merge_request request_of(struct proof *p, char *top, size_t room)
{
    struct merge_request q = MERGE_REQUEST_INIT;

    snprintf(top, room, "%s/%s", p->dir, p->top);
    q.top = top;
    q.drop = p->drop;
    q.drop_count = p->drop_count;
    q.direction = p->direction;
    q.lower_name = p->lower_name;
    return q;
}

static uint64_t hash_of(const struct proof *p, const struct file *f)
{
    return naive_hash_file(p->dir, f->name, f->qcow2);
}

static bool is_there(const struct proof *p, const struct file *f)
{
    return access(memio_path(p->dir, f->name), F_OK) == 0;
}

static bool reads_right(const struct proof *p, const struct file *f)
{
    uint64_t h = hash_of(p, f);

    return h == f->hash || (f->other && h == f->other);
}

/* --------------------------------------------------------------- judging */

/* Layers that are no neighbours go one after another. */
static bool is_between(const struct proof *p)
{
    size_t there = 0;

    for (size_t i = 0; i < p->n; i++)
        there += p->files[i].drop && is_there(p, &p->files[i]);
    return !p->lower_name && there > 0 && there < p->drop_count;
}

static bool is_journal(const char *name)
{
    return strncmp(name, MERGE_JOURNAL, strlen(MERGE_JOURNAL)) == 0;
}

static void count_journal(void *user, const char *name)
{
    *(unsigned long *)user += is_journal(name);
}

static void no_stranger(void *user, const char *name)
{
    struct proof *p = user;
    char why[512];

    if (is_journal(name) && is_between(p))
        return;
    for (size_t i = 0; i < p->n; i++) {
        if (strcmp(p->files[i].name, name) == 0)
            return;
    }
    snprintf(why, sizeof(why), "%s was left behind", name);
    fail(p, why);
}

static void check_by_qemu(struct proof *p, const struct file *f)
{
    char command[8192];
    int e;

    snprintf(command, sizeof(command),
             "qemu-img check -q -f qcow2 '%s/%s' >/dev/null 2>&1", p->dir,
             f->name);
    e = system(command);
    /* 3: leaks, which a crash may leave */
    if (!WIFEXITED(e) || (WEXITSTATUS(e) != 0 && WEXITSTATUS(e) != 3))
        fail(p, "qemu-img check finds damage");
    p->qemu++;
}

static void check_counts(struct proof *p, const struct file *f)
{
    struct naive_chain *c;
    int e;

    if (!f->qcow2)
        return;
    c = naive_open(p->dir, f->name, true);
    e = naive_check(c);
    naive_close(c);
    if (e == 2)
        fail(p, memio_path("refcounts or COPIED bits are wrong", f->name));
    p->leaky += e == 1;
}

/* The corrupt bit and our autoclear bit. */
static bool is_marked(const struct proof *p, const struct file *f)
{
    size_t len;
    uint8_t *data = memio_get(memio_path(p->dir, f->name), &len);
    bool marked =
        data && len > 96 && data[7] == 3 && data[79] & 2 && data[88] & 0x80;

    free(data);
    return marked;
}

/* One of them shows what another did: the result, which has its header. */
static bool is_flipped(const struct proof *p)
{
    for (size_t i = 0; i < p->n; i++) {
        uint64_t h = p->files[i].may_go || p->files[i].other
                         ? hash_of(p, &p->files[i])
                         : p->files[i].hash;

        for (size_t k = 0; k < p->n && h != p->files[i].hash; k++)
            if (h == p->files[k].hash)
                return true;
    }
    return false;
}

/* What goes reads as one of the images did, or says that it is torn. From the
 * flip on what stands on the result is of no use, and next to go; once names
 * change, what it names may be gone before it. */
static void judge_dropped(struct proof *p, const struct file *f)
{
    uint64_t h;

    for (size_t i = 0; i < p->n; i++)
        if (!is_there(p, &p->files[i]))
            return;
    if (!f->qcow2)
        return;
    h = hash_of(p, f);
    for (size_t i = 0; i < p->n; i++)
        if (h == p->files[i].hash)
            return;
    if (is_marked(p, f))
        p->marked++;
    else if (!is_flipped(p))
        fail(p, memio_path("half written over and not marked", f->name));
}

/* What stands before any recovery: survivors read as ever. */
static void judge_before(struct proof *p)
{
    for (size_t i = 0; i < p->n; i++) {
        const struct file *f = &p->files[i];

        /* what takes the lower name may be half written over */
        if (!p->raw && !f->other && !f->may_go && !reads_right(p, f))
            fail(p, memio_path("before recovery reads differently", f->name));
        /* nothing is written over: by the old name and by the new one */
        if (p->upwards && (f->other || f->upper) && is_there(p, f) &&
            !reads_right(p, f))
            fail(p, memio_path("before recovery reads differently", f->name));
        if (!p->raw && (f->other || f->may_go))
            judge_dropped(p, f);
    }
}

/* And after it everything that is there. */
static void judge_after(struct proof *p)
{
    bool qemu = p->qemu_every && p->states % p->qemu_every == 0;
    unsigned long journals = 0;
    size_t dropped = 0;

    memio_each(p->dir, no_stranger, p);
    memio_each(p->dir, count_journal, &journals);
    if (is_between(p) && journals != 1)
        fail(p, "nothing tells what has gone");
    p->between += journals;
    for (size_t i = 0; i < p->n; i++) {
        const struct file *f = &p->files[i];

        if (f->may_go && !is_there(p, f))
            continue;
        dropped += f->may_go;
        if (!reads_right(p, f))
            fail(p, memio_path("reads differently", f->name));
        check_counts(p, f);
        if (qemu && f->qcow2)
            check_by_qemu(p, f);
    }
    p->rolled_back += dropped > 0;
}

static void recover(struct proof *p, const struct io *io)
{
    struct qstill_error err = {0};
    bool did = false;

    if (merge_recover_dir(io, p->dir, &did, &err) < 0)
        fail_with(p, "the recovery failed", &err);
    p->recovered += did;
    if (merge_recover_dir(record_keeping_io(p->record), p->dir, &did, &err) <
            0 ||
        did)
        fail_with(p, "a second recovery found something to do", &err);
}

/* Journals of a merge that has no way back. */
static void count_torn(void *user, const char *name)
{
    struct proof *p = user;
    uint8_t *data;
    size_t len;

    if (!is_journal(name))
        return;
    data = memio_get(memio_path(p->dir, name), &len);
    p->torn += memmem(data, len, "\nkind overwrite\n", 16) != NULL;
    free(data);
}

static void judge(struct proof *p)
{
    p->states++;
    memio_each(p->dir, count_torn, p);
    judge_before(p);
    recover(p, record_keeping_io(p->record));
    judge_after(p);
}

/* ------------------------------------------------------------- the merge */

/* Runs it to its end, or `steps` steps; 0, or the error's code. */
static int run_merge(struct proof *p, const struct io *io, long steps,
                     struct qstill_error *err)
{
    struct merge *m = NULL;
    char top[4096];
    struct merge_request q = request_of(p, top, sizeof(top));
    bool done = false;
    int e = merge_open(&m, io, &q, err);

    while (e == 0 && !done) {
        if (steps-- == 0) {
            e = merge_cancel(m, err);
            break;
        }
        e = merge_step(m, &done, err);
    }
    merge_close(m);
    return e;
}

/* The same merge over what the last state left: it must end as it should. */
static void merge_again(struct proof *p)
{
    struct qstill_error err = {0};
    size_t all = p->drop_count, left = 0;

    if (p->lower_name) /* TOP may be gone: the names have changed */
        return;

    for (size_t i = 0; i < all; i++) {
        if (access(p->drop[i], F_OK) == 0) {
            const char *path = p->drop[i];

            p->drop[i] = p->drop[left];
            p->drop[left++] = path;
        }
    }
    p->drop_count = left;
    if (left > 0 && run_merge(p, record_keeping_io(p->record), -1, &err) < 0)
        fail_with(p, "the merge cannot be done again", &err);
    p->drop_count = all;
    judge_after(p);
    for (size_t i = 0; i < p->n; i++) {
        if (p->files[i].may_go && is_there(p, &p->files[i]))
            fail(p, "a layer is still there after the second try");
    }
}

static void cut(struct proof *p, size_t count, enum record_loss loss,
                uint64_t seed)
{
    snprintf(p->what, sizeof(p->what),
             "%zu of %zu operations (last: %s), loss %d, coins %llu", count,
             record_count(p->record),
             count ? record_describe(p->record, count - 1) : "-", loss,
             (unsigned long long)seed);
    record_replay(p->record, count, loss, seed);
}

/* The recovery of the present state, cut at every point of its own. */
static void nested(struct proof *p)
{
    struct record *outer = p->record, *inner = record_nested(outer);
    char what[200];

    snprintf(what, sizeof(what), "%.150s", p->what);
    recover(p, record_io(inner));
    if (record_bypassed(inner))
        fail(p, record_bypassed(inner));
    p->record = inner;
    for (size_t i = 0; i <= record_count(inner); i++) {
        for (int loss = 0; loss < RECORD_LOSS_KINDS; loss++) {
            record_replay(inner, i, loss, p->seed + i);
            snprintf(p->what, sizeof(p->what), "%s; recovery cut at %zu/%d",
                     what, i, loss);
            p->nested++;
            judge(p);
        }
    }
    p->record = outer;
    record_free(inner);
}

static void every_prefix(struct proof *p)
{
    for (size_t i = 0; i <= record_count(p->record); i++) {
        cut(p, i, RECORD_KEEP_ALL, 0);
        judge(p);
        if (i % 7 == 0)
            merge_again(p);
        cut(p, i, RECORD_LOSE_ALL, 0);
        judge(p);
        if (i % 5 == 0) {
            cut(p, i, i % 10 ? RECORD_KEEP_ALL : RECORD_LOSE_ALL, 0);
            nested(p);
        }
    }
}

static void every_interval(struct proof *p)
{
    size_t from = 0, total = record_count(p->record);
    uint64_t coins = p->seed * 1000003;

    for (size_t i = 0; i <= total; i++) {
        if (i < total && !record_is_sync(p->record, i))
            continue;
        for (unsigned k = 0; k < p->subsets && i > from; k++) {
            size_t at = k % 2 ? i : from + 1 + coins % (i - from);

            cut(p, at, RECORD_SUBSET + k % (RECORD_LOSS_KINDS - RECORD_SUBSET),
                ++coins);
            judge(p);
        }
        from = i + 1;
    }
}

static int other_error(unsigned kind)
{
    if (kind == FAULT_OPEN)
        return EMFILE;
    return kind == FAULT_READ ? ENOMEM : ENOSPC;
}

static void every_fault(struct proof *p)
{
    static const unsigned kinds[] = {
        FAULT_OPEN,     FAULT_READ,     FAULT_WRITE, FAULT_SYNC,
        FAULT_TRUNCATE, FAULT_ALLOCATE, FAULT_NAME,  FAULT_ATTR,
    };

    for (size_t k = 0; k < ARRAY_LEN(kinds) * 4; k++) {
        for (long n = 1;; n++) {
            struct qstill_error err = {0};
            struct fault_io f;
            int e;

            fault_io_init(&f, record_keeping_io(p->record));
            f.kinds = kinds[k / 4];
            f.error = k & 1 ? other_error(f.kinds) : EIO;
            f.onwards = k & 2;
            f.at = n;
            record_replay(p->record, 0, RECORD_KEEP_ALL, 0);
            snprintf(p->what, sizeof(p->what), "kind %#x, call %ld: %s%s",
                     f.kinds, n, strerror(f.error),
                     f.onwards ? ", for good" : "");
            e = run_merge(p, &f.io, -1, &err);
            if (e < 0 && !err.message[0])
                fail(p, "an error without a message");
            p->faults += f.failed > 0;
            judge(p);
            if (f.failed == 0)
                break;
        }
    }
}

static void every_cancel(struct proof *p)
{
    for (long n = 1;; n++) {
        struct qstill_error err = {0};
        unsigned long recovered;
        int e;

        record_replay(p->record, 0, RECORD_KEEP_ALL, 0);
        snprintf(p->what, sizeof(p->what), "cancelled after %ld steps", n);
        recovered = p->recovered;
        e = run_merge(p, record_keeping_io(p->record), n, &err);
        judge(p);
        /* what is half written over goes forward, by recovery */
        if (e < 0 && p->recovered == recovered)
            fail_with(p, "the cancel failed", &err);
        p->cancels++;
        if (!is_there(p, &p->files[0]) && n > 10000)
            fail(p, "it never ends");
        for (size_t i = 0; i < p->n; i++) {
            if (p->files[i].may_go && is_there(p, &p->files[i]))
                goto more; /* it was in time */
        }
        return;
    more:;
    }
}

/* ------------------------------------------------------------------ setup */

static void take_file(void *user, const char *name)
{
    struct proof *p = user;
    struct file *f = &p->files[p->n++];
    size_t len;
    uint8_t *data = memio_get(memio_path(p->dir, name), &len);

    if (p->n > MAX_FILES)
        memio_die("too many files");
    *f = (struct file){.name = strdup(name)};
    f->qcow2 = len > 4 && memcmp(data, "QFI\xfb", 4) == 0;
    free(data);
    f->hash = hash_of(p, f);
    if (f->hash == 0)
        memio_die("cannot read %s", name);
}

static void take_drop(struct proof *p, const char *name)
{
    snprintf(p->paths[p->drop_count], sizeof(p->paths[0]), "%s/%s", p->dir,
             name);
    p->drop[p->drop_count] = p->paths[p->drop_count];
    p->drop_count++;
    for (size_t i = 0; i < p->n; i++) {
        if (strcmp(p->files[i].name, name) == 0) {
            p->files[i].drop = p->files[i].may_go = true;
            return;
        }
    }
    memio_die("no layer %s", name);
}

/* The last dropped layer stays and shows what UPPER showed, which goes. */
static void take_upper(struct proof *p, const char *upper, const char *lowest)
{
    struct file *u = NULL, *l = NULL;

    for (size_t i = 0; i < p->n; i++) {
        if (strcmp(p->files[i].name, upper) == 0)
            u = &p->files[i];
        if (strcmp(p->files[i].name, lowest) == 0)
            l = &p->files[i];
    }
    if (!u || !l)
        memio_die("no layer %s or %s", upper, lowest);
    u->may_go = u->upper = true;
    l->may_go = false;
    l->other = u->hash;
    p->lower_name = true;
    p->raw = !l->qcow2;
    p->upwards = !p->raw && p->direction == MERGE_UP;
}

static enum merge_direction direction_of(const char *word)
{
    static const char *const words[] = {"auto", "up", "down", "new"};

    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        if (strcmp(words[i], word) == 0)
            return (enum merge_direction)i;
    }
    memio_die("no direction %s", word);
}

static void prove(struct proof *p)
{
    struct qstill_error err = {0};

    snprintf(p->what, sizeof(p->what), "undisturbed");
    p->record = record_new(p->dir);
    if (run_merge(p, record_io(p->record), -1, &err) < 0) {
        /* told apart from a failed proof: there is nothing to prove */
        printf("refused: %s\n", err.message);
        record_free(p->record);
        exit(err.code == QSTILL_E_PRECONDITION ? 0 : 1);
    }
    if (record_bypassed(p->record))
        fail(p, record_bypassed(p->record));
    judge_after(p);
    if (p->leaky)
        fail(p, "an undisturbed merge leaves leaks");
    every_prefix(p);
    every_interval(p);
    every_fault(p);
    every_cancel(p);
    record_replay(p->record, record_count(p->record), RECORD_KEEP_ALL, 0);
    printf("states: %lu (%zu operations, %lu recoveries, %lu rolled back, "
           "%lu nested, %lu faults, %lu cancels, %lu by qemu-img, %lu with "
           "leaks, %lu with clusters written over, %lu with an image that "
           "is marked as torn, %lu with a part of it done)\n",
           p->states, record_count(p->record), p->recovered, p->rolled_back,
           p->nested, p->faults, p->cancels, p->qemu, p->leaky, p->torn,
           p->marked, p->between);
    record_free(p->record);
}

int main(int argc, char **argv)
{
    static struct proof p = {.subsets = 20, .seed = 1};
    const char *upper = NULL;
    int c;

    while ((c = getopt(argc, argv, "n:s:q:l:")) != -1) {
        if (c == 'n')
            p.subsets = (unsigned)atoi(optarg);
        else if (c == 's')
            p.seed = strtoull(optarg, NULL, 10);
        else if (c == 'q')
            p.qemu_every = (unsigned)atoi(optarg);
        else if (c == 'l')
            upper = optarg;
        else
            return 2;
    }
    if (argc - optind < 4) {
        fprintf(stderr, "usage: crash_merge [-n SUBSETS] [-s SEED] "
                        "[-q EVERY] [-l UPPER] DIR TOP DIRECTION LAYER...\n");
        return 2;
    }
    p.dir = realpath(argv[optind], NULL);
    p.top = argv[optind + 1];
    p.direction = direction_of(argv[optind + 2]);
    if (!p.dir)
        memio_die("no directory %s", argv[optind]);
    memio_each(p.dir, take_file, &p);
    for (int i = optind + 3; i < argc; i++)
        take_drop(&p, argv[i]);
    if (upper)
        take_upper(&p, upper, argv[argc - 1]);
    prove(&p);
    for (size_t i = 0; i < p.n; i++)
        free(p.files[i].name);
    free((char *)(uintptr_t)p.dir);
    return 0;
}
