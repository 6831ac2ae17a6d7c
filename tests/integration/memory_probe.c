/* SPDX-License-Identifier: MIT */
/*
 * Drives src/memstate for test_memory.py, which talks to QEMU. Events and
 * results are lines "key=value" on stdout (on stderr where stdout is a
 * stream); a line on stdin says "the VM is stopped".
 *
 *   memory_probe stream FD DIR background|precopy
 *   memory_probe copy DIR PID DEVICE ID:HVA:SIZE...  DEVICE: a file's path
 *   memory_probe cow DIR PID DEVICE ID:HVA:SIZE...   a second line on stdin:
 *                                  "it runs again"; compares what was captured
 *                                  with the RAM at the pause, read by itself
 *   memory_probe inject PID N      makes a userfaultfd there and closes it; we
 *                                  die of SIGKILL at step N of it
 *   memory_probe find PID ID:USED:MAX:HVA:PCI...     HVA 0: to be found;
 *                                                    PCI: vendor << 16 | id
 *   memory_probe restore DIR MACHINE all|zeros|ID,ID..  stream to stdout; the
 *                                                    ids are mapped blocks
 *   memory_probe build DIR MACHINE [ID:OFFSET:LENGTH...]     bytes to stdout
 *   memory_probe verify DIR
 * In the environment: CACHED=1: no O_DIRECT; for cow RATE=bytes per second,
 * OLD=1: as on a kernel before 6.4, NOFILE=1: shared RAM as if it were private,
 * POOL=bytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "memstate/capture.h"
#include "memstate/cow.h"
#include "memstate/inject.h"
#include "memstate/procmem.h"
#include "memstate/restore.h"
#include "memstate/verify.h"
#include "memstate/worker.h"

#define ITEMS_MAX 64

static enum ramset_cache cache(void)
{
    return getenv("CACHED") ? RAMSET_CACHED : RAMSET_DIRECT;
}

static int fail(const struct qstill_error *err)
{
    fprintf(stderr, "error=%s\nmessage=%s\nhint=%s\n",
            qstill_code_name(err->code), err->message, err->hint);
    return 1;
}

static void wait_fd(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    poll(&p, 1, -1);
}

static int open_dir(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0) {
        perror(path);
        exit(2);
    }
    return fd;
}

/* "id:number:number..." from the back, as an id may hold colons. */
static char *split(char *item, uint64_t *numbers, unsigned count)
{
    while (count-- > 0) {
        char *colon = strrchr(item, ':');

        if (!colon)
            exit(2);
        numbers[count] = strtoull(colon + 1, NULL, 0);
        *colon = '\0';
    }
    return item;
}

/* ---------------------------------------------------------------- capture */

struct told {
    bool ready, instant;
    uint64_t start_ns;
};

static void tell(struct told *t, const struct capture_status *s)
{
    double ms = (double)(worker_now_ns() - t->start_ns) / 1e6;

    if (s->ready && !t->ready)
        printf("ready=%.3f\n", ms);
    if (s->instant_taken && !t->instant)
        printf("instant=%.3f\n", ms);
    t->ready = s->ready;
    t->instant = s->instant_taken;
    fflush(stdout);
}

static int print_result(struct capture *c)
{
    struct capture_result r;
    struct qstill_error err;

    if (capture_finish(c, &r, &err) < 0)
        return fail(&err);
    for (size_t i = 0; i < r.block_count; i++)
        printf("block=%s %llu\n", r.blocks[i].id,
               (unsigned long long)r.blocks[i].size);
    printf("machine=%s\nmemory=%llu\nwritten=%llu\nzero=%llu\nsent=%llu\n",
           r.machine, (unsigned long long)r.memory_bytes,
           (unsigned long long)r.written_bytes,
           (unsigned long long)r.zero_bytes, (unsigned long long)r.sent_bytes);
    printf("disk=%llu\ndevice=%llu\nstall_ms=%.3f\nfooters=%d\nvmdesc=%d\n",
           (unsigned long long)r.disk_bytes, (unsigned long long)r.device_bytes,
           r.longest_stall_ms, r.footers, r.vmdescription);
    return 0;
}

static int finish(struct capture *c, struct told *t)
{
    struct capture_status s;
    int rc;

    for (capture_poll(c, &s); !s.complete; capture_poll(c, &s)) {
        tell(t, &s);
        wait_fd(capture_fd(c));
    }
    tell(t, &s);
    rc = print_result(c);
    printf("complete=%.3f\n", (double)(worker_now_ns() - t->start_ns) / 1e6);
    capture_close(c);
    return rc;
}

static int do_stream(int argc, char **argv)
{
    enum capture_flavour flavour = CAPTURE_PRECOPY;
    struct told t = {.start_ns = worker_now_ns()};
    struct capture_options o = {.cache = cache()};
    struct qstill_error err;
    struct capture *c;

    if (argc != 3)
        return 2;
    if (strcmp(argv[2], "background") == 0)
        flavour = CAPTURE_BACKGROUND;
    o.dirfd = open_dir(argv[1]);
    if (capture_stream_open(&c, atoi(argv[0]), flavour, &o, &err) < 0)
        return fail(&err);
    return finish(c, &t);
}

static size_t take_blocks(int argc, char **argv, struct capture_source *out)
{
    size_t count = 0;

    for (int i = 0; i < argc; i++) {
        uint64_t n[2];
        char *id = split(argv[i], n, 2);

        out[count++] = (struct capture_source){id, n[0], n[1], 0};
    }
    return count;
}

static int do_copy(int argc, char **argv)
{
    struct told t = {.start_ns = worker_now_ns()};
    struct capture_options o = {.cache = cache()};
    struct capture_source blocks[ITEMS_MAX];
    struct capture_status s = {0};
    struct qstill_error err;
    struct capture *c;
    size_t count;
    char line[16];
    int device;

    if (argc < 3 || argc > 3 + ITEMS_MAX)
        return 2;
    count = take_blocks(argc - 3, argv + 3, blocks);
    o.dirfd = open_dir(argv[0]);
    if (capture_copy_open(&c, atoi(argv[1]), blocks, count, &o, &err) < 0)
        return fail(&err);
    while (!s.ready && !s.complete) {
        wait_fd(capture_fd(c));
        capture_poll(c, &s);
    }
    tell(&t, &s);
    if (!fgets(line, sizeof(line), stdin))
        return 2;
    device = open(argv[2], O_RDONLY | O_CLOEXEC);
    t.start_ns = worker_now_ns();
    if (device < 0 || capture_device_state(c, device, &err) < 0 ||
        capture_instant(c, &err) < 0)
        return fail(&err);
    return finish(c, &t);
}

/* -------------------------------------------------------------------- cow */

/* All of the process's block, by nothing of what is tested. */
static uint8_t *read_block(pid_t pid, const struct capture_source *b)
{
    uint8_t *data = malloc(b->size);

    for (uint64_t at = 0; at < b->size;) {
        uint64_t len = b->size - at < (64 << 20) ? b->size - at : 64 << 20;
        struct iovec here = {data + at, len};
        struct iovec there = {(void *)(uintptr_t)(b->hva + at), len};
        ssize_t n = process_vm_readv(pid, &here, 1, &there, 1, 0);

        if (n <= 0) {
            perror(b->id);
            exit(2);
        }
        at += (uint64_t)n;
    }
    return data;
}

static unsigned long compare_block(int dirfd, const struct capture_source *b,
                                   const uint8_t *reference)
{
    uint8_t *data = malloc(b->size);
    char name[RAMSET_NAME_SIZE];
    struct qstill_error err;
    unsigned long differ = 0;
    uint64_t got = 0;
    int fd = -1;

    if (ramset_file_name(b->id, name, &err) == 0)
        fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && got < b->size) {
        ssize_t n = read(fd, data + got, b->size - got);

        if (n <= 0)
            break;
        got += (uint64_t)n;
    }
    if (fd < 0 || got != b->size)
        exit(2);
    close(fd);
    for (uint64_t at = 0; at < b->size; at += RAMSET_PAGE) {
        if (memcmp(data + at, reference + at, RAMSET_PAGE) == 0)
            continue;
        if (differ++ == 0)
            printf("first=%s %#llx\n", b->id, (unsigned long long)at);
    }
    free(data);
    return differ;
}

static void wait_until(struct capture *c, bool instant)
{
    struct capture_status s;

    capture_poll(c, &s);
    while (!s.complete && !(instant ? s.instant_taken : s.ready)) {
        wait_fd(capture_fd(c));
        capture_poll(c, &s);
    }
}

static uint64_t number_of(const char *name)
{
    return getenv(name) ? strtoull(getenv(name), NULL, 0) : 0;
}

static int do_cow(int argc, char **argv)
{
    struct capture_cow_options cow = CAPTURE_COW_OPTIONS_INIT;
    struct capture_options o = {.cache = cache(), .bwlimit = number_of("RATE")};
    struct told t = {.start_ns = worker_now_ns()};
    struct capture_source blocks[ITEMS_MAX];
    uint8_t *reference[ITEMS_MAX];
    struct cow_stats stats = {0};
    unsigned long differ = 0;
    struct qstill_error err;
    struct capture *c;
    size_t count;
    char line[16];
    int device, rc;

    if (argc < 4 || argc > 3 + ITEMS_MAX)
        return 2;
    count = take_blocks(argc - 3, argv + 3, blocks);
    o.dirfd = open_dir(argv[0]);
    cow.no_unpopulated = number_of("OLD");
    cow.no_file = number_of("NOFILE");
    cow.pool_bytes = number_of("POOL");
    cow.stats = &stats;
    if (capture_cow_open(&c, atoi(argv[1]), blocks, count, &cow, &o, &err) < 0)
        return fail(&err);
    wait_until(c, false);
    printf("ready=1\n");
    fflush(stdout);
    if (!fgets(line, sizeof(line), stdin))
        return 2;
    for (size_t i = 0; i < count; i++)
        reference[i] = read_block(atoi(argv[1]), &blocks[i]);
    device = open(argv[2], O_RDONLY | O_CLOEXEC);
    if (device < 0 || capture_device_state(c, device, &err) < 0 ||
        capture_instant(c, &err) < 0)
        return fail(&err);
    wait_until(c, true);
    printf("instant=1\n");
    fflush(stdout);
    if (!fgets(line, sizeof(line), stdin))
        return 2;
    capture_resumed(c);
    rc = finish(c, &t);
    for (size_t i = 0; i < count && rc == 0; i++)
        differ += compare_block(o.dirfd, &blocks[i], reference[i]);
    printf("faults=%llu\nwaited=%llu\nmarked=%llu\ninstant_ms=%.3f\n",
           (unsigned long long)stats.faults, (unsigned long long)stats.waited,
           (unsigned long long)stats.marked, stats.instant_ms);
    printf("p99_ms=%.3f\ndiffer=%lu\n", cow_stats_stall_ms(&stats, 0.99),
           differ);
    return rc;
}

/* ----------------------------------------------------------------- inject */

static void die_at(void *user, const char *step)
{
    int *left = user;

    (void)step;
    if ((*left)-- == 0)
        kill(getpid(), SIGKILL);
}

static int do_inject(int argc, char **argv)
{
    struct inject_call call = {.name = "userfaultfd",
                               .nr = SYS_userfaultfd,
                               .args = {O_CLOEXEC | O_NONBLOCK}};
    struct inject_options o = {.hook = die_at};
    struct inject_result r;
    struct qstill_error err;
    int left;

    if (argc != 2)
        return 2;
    left = atoi(argv[1]);
    o.user = &left;
    printf("go=1\n");
    fflush(stdout);
    if (inject_fd(atoi(argv[0]), &call, &o, &r, &err) < 0)
        return fail(&err);
    printf("errno=%d\nheld_ms=%.3f\n", r.remote_errno, r.held_ms);
    return 0;
}

/* ------------------------------------------------------------------- find */

static int do_find(int argc, char **argv)
{
    static const char *const how[] = {
        [PROCMEM_UNKNOWN] = "unknown",     [PROCMEM_KNOWN] = "known",
        [PROCMEM_UNIQUE] = "unique",       [PROCMEM_SAME] = "same",
        [PROCMEM_AMBIGUOUS] = "ambiguous",
    };
    CLEANUP(procmem_closep) struct procmem *p = NULL;
    struct procmem_block blocks[ITEMS_MAX];
    struct qstill_error err;
    size_t count = 0;

    if (argc < 1 || argc > 1 + ITEMS_MAX)
        return 2;
    for (int i = 1; i < argc; i++) {
        uint64_t n[4];
        char *id = split(argv[i], n, 4);

        blocks[count++] = (struct procmem_block){
            .id = id,
            .used = n[0],
            .max = n[1],
            .hva = n[2],
            .pci_vendor = (uint16_t)(n[3] >> 16),
            .pci_device = (uint16_t)n[3],
            .how = n[2] ? PROCMEM_KNOWN : PROCMEM_UNKNOWN,
        };
    }
    if (procmem_open(&p, atoi(argv[0]), &err) < 0 ||
        procmem_find(p, blocks, count, &err) < 0)
        return fail(&err);
    for (size_t i = 0; i < count; i++)
        printf("found=%s %s %u %#llx\n", blocks[i].id, how[blocks[i].how],
               blocks[i].candidates, (unsigned long long)blocks[i].hva);
    return 0;
}

/* ---------------------------------------------------------------- restore */

static struct ramset *open_set(const char *dir)
{
    struct qstill_error err;
    struct ramset *set;
    int fd = open_dir(dir);

    if (ramset_open(&set, fd, &err) < 0)
        exit(fail(&err));
    close(fd);
    return set;
}

static int do_restore(int argc, char **argv)
{
    struct restore_options o = {.cache = cache()};
    uint64_t start_ns = worker_now_ns();
    const char *mapped[ITEMS_MAX];
    struct restore_status s = {0};
    struct restore_result result;
    struct qstill_error err;
    struct restore *r;
    int rc = 0;

    if (argc != 3)
        return 2;
    o.set = open_set(argv[0]);
    o.machine = argv[1];
    o.mapped = mapped;
    if (strcmp(argv[2], "zeros") == 0) {
        o.zeros = RESTORE_SEND_ZEROS;
    } else if (strcmp(argv[2], "all") != 0) {
        o.pages = RESTORE_UNMAPPED;
        for (char *id = strtok(argv[2], ","); id; id = strtok(NULL, ","))
            mapped[o.mapped_count++] = id;
    }
    if (restore_open(&r, dup(1), &o, &err) < 0)
        return fail(&err);
    close(1);
    for (restore_poll(r, &s); !s.complete; restore_poll(r, &s))
        wait_fd(restore_fd(r));
    if (restore_finish(r, &result, &err) < 0)
        rc = fail(&err);
    else
        fprintf(stderr, "read=%llu\nsent=%llu\nstream=%llu\ncomplete=%.3f\n",
                (unsigned long long)result.read_bytes,
                (unsigned long long)result.sent_bytes,
                (unsigned long long)result.stream_bytes,
                (double)(worker_now_ns() - start_ns) / 1e6);
    restore_close(r);
    ramset_close((struct ramset *)(uintptr_t)o.set);
    return rc;
}

static int do_build(int argc, char **argv)
{
    struct restore_range ranges[ITEMS_MAX];
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    struct restore_options o = {.pages = RESTORE_LISTED, .ranges = ranges};
    struct qstill_error err;

    if (argc < 2 || argc > 2 + ITEMS_MAX)
        return 2;
    for (int i = 2; i < argc; i++) {
        uint64_t n[2];
        char *id = split(argv[i], n, 2);

        ranges[o.range_count++] = (struct restore_range){id, n[0], n[1]};
    }
    o.set = open_set(argv[0]);
    o.machine = argv[1];
    if (restore_build(&b, &o, &err) < 0)
        return fail(&err);
    ramset_close((struct ramset *)(uintptr_t)o.set);
    return fwrite(b.data, 1, b.len, stdout) == b.len ? 0 : 1;
}

static int do_verify(int argc, char **argv)
{
    struct verify_options o = {.cache = cache()};
    uint64_t start_ns = worker_now_ns();
    struct verify_status s = {0};
    struct qstill_error err;
    struct verify *v;
    int rc = 0;

    if (argc != 1)
        return 2;
    o.dirfd = open_dir(argv[0]);
    if (verify_open(&v, &o, &err) < 0)
        return fail(&err);
    for (verify_poll(v, &s); !s.complete; verify_poll(v, &s))
        wait_fd(verify_fd(v));
    if (verify_finish(v, &err) < 0)
        rc = fail(&err);
    else
        printf("verified=%llu\ncomplete=%.3f\n",
               (unsigned long long)s.bytes_done,
               (double)(worker_now_ns() - start_ns) / 1e6);
    verify_close(v);
    return rc;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } verbs[] = {
        {"stream", do_stream}, {"copy", do_copy},     {"cow", do_cow},
        {"find", do_find},     {"inject", do_inject}, {"restore", do_restore},
        {"build", do_build},   {"verify", do_verify},
    };

    for (size_t i = 0; argc > 1 && i < ARRAY_LEN(verbs); i++)
        if (strcmp(argv[1], verbs[i].name) == 0)
            return verbs[i].run(argc - 2, argv + 2);
    return 2;
}
