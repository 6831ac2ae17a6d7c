/* SPDX-License-Identifier: MIT */
#include "hostinfo.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/file.h"
#include "base/sum.h"

/* The first CPU's paragraph is a few KiB; hosts with hundreds have a file of
 * megabytes, of which this is enough. */
enum { CPUINFO_MAX = 64 << 10, SUM_CHUNK = 1 << 20 };

/* Up to max bytes of a file of /proc or /sys, without the last newline. */
static int read_text(const char *path, size_t max, struct buf *b)
{
    CLEANUP(closep) int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = 1;

    if (fd < 0 || buf_reserve(b, max) < 0)
        return -1;
    while (n > 0 && b->len < max) {
        n = read(fd, b->data + b->len, max - b->len);
        if (n > 0)
            b->len += (size_t)n;
    }
    if (b->len && b->data[b->len - 1] == '\n')
        b->len--;
    b->data[b->len] = '\0';
    return n < 0 ? -1 : 0;
}

static void copy_text(char out[HOSTINFO_TEXT_MAX], const char *s, size_t len)
{
    snprintf(out, HOSTINFO_TEXT_MAX, "%.*s", (int)len, s);
}

static int read_line(const char *path, char out[HOSTINFO_TEXT_MAX])
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    if (read_text(path, HOSTINFO_TEXT_MAX, &b) < 0 || b.len == 0)
        return -1;
    copy_text(out, (const char *)b.data, strcspn((char *)b.data, "\n"));
    return 0;
}

void hostinfo_parse_cpuinfo(struct hostinfo *out, const char *text)
{
    const struct {
        const char *label;
        char *to;
    } fields[] = {
        {"vendor_id", out->cpu_vendor},
        {"model name", out->cpu_model},
        {"microcode", out->microcode},
    };
    size_t i;

    /* An empty line ends the first CPU. */
    while (*text && *text != '\n') {
        size_t line = strcspn(text, "\n"), name = strcspn(text, "\t:\n");
        const char *value = memchr(text, ':', line);

        for (i = 0; value && i < ARRAY_LEN(fields); i++) {
            const char *v = value + 1 + (value[1] == ' ');

            if (name == strlen(fields[i].label) &&
                strncmp(text, fields[i].label, name) == 0)
                copy_text(fields[i].to, v, (size_t)(text + line - v));
        }
        text += line + (text[line] == '\n');
    }
}

static uint64_t tsc_from_sysfs(void)
{
    char line[HOSTINFO_TEXT_MAX];

    if (read_line("/sys/devices/system/cpu/cpu0/tsc_freq_khz", line) < 0)
        return 0;
    return strtoull(line, NULL, 10);
}

#if defined(__x86_64__)
/* Leaf 0x15: TSC / crystal = ebx / eax, crystal in ecx (Hz). Where ecx is 0
 * the base frequency of leaf 0x16 (MHz) is the TSC's, as Linux has it too. */
static uint64_t tsc_from_cpuid(void)
{
    unsigned int a, b, c, d, base = 0;

    if (!__get_cpuid_count(0x15, 0, &a, &b, &c, &d) || a == 0 || b == 0)
        return 0;
    if (c)
        return (uint64_t)c * b / a / 1000;
    if (!__get_cpuid_count(0x16, 0, &base, &b, &c, &d))
        return 0;
    return (uint64_t)(base & 0xffff) * 1000;
}

/* What several hypervisors tell their guests: leaf 0x40000010, kHz in eax. */
static uint64_t tsc_from_hypervisor(void)
{
    unsigned int a, b, c, d;

    __cpuid(1, a, b, c, d);
    if (!(c & 1u << 31))
        return 0;
    __cpuid(0x40000000, a, b, c, d);
    if (a < 0x40000010 || a > 0x400000ff)
        return 0;
    __cpuid(0x40000010, a, b, c, d);
    return a;
}
#define MEASURE_NS 20000000L

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC_RAW, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* TSC and clock at one moment: the closest of some pairs. */
static void read_pair(uint64_t *tsc, uint64_t *ns)
{
    uint64_t best = UINT64_MAX;

    for (int i = 0; i < 16; i++) {
        uint64_t before = now_ns(), t = __rdtsc(), after = now_ns();

        if (after - before >= best)
            continue;
        best = after - before;
        *tsc = t;
        *ns = before + best / 2;
    }
}

/* Where nobody tells: measured, to some millionths. Only of a TSC that runs
 * evenly. */
static uint64_t tsc_measured(void)
{
    const struct timespec nap = {.tv_nsec = MEASURE_NS};
    uint64_t tsc0 = 0, tsc1 = 0, ns0 = 0, ns1 = 0;
    unsigned int a, b, c, d;

    if (!__get_cpuid(0x80000007, &a, &b, &c, &d) || !(d & 1u << 8))
        return 0;
    read_pair(&tsc0, &ns0);
    nanosleep(&nap, NULL);
    read_pair(&tsc1, &ns1);
    if (ns1 <= ns0 || tsc1 <= tsc0)
        return 0;
    return (uint64_t)((double)(tsc1 - tsc0) * 1e6 / (double)(ns1 - ns0));
}
#else
static uint64_t tsc_measured(void)
{
    return 0;
}

static uint64_t tsc_from_cpuid(void)
{
    return 0;
}

static uint64_t tsc_from_hypervisor(void)
{
    return 0;
}
#endif

static uint64_t tsc_khz(void)
{
    static uint64_t (*const sources[])(void) = {
        tsc_from_sysfs,
        tsc_from_cpuid,
        tsc_from_hypervisor,
    };
    uint64_t khz = 0;
    size_t i;

    for (i = 0; khz == 0 && i < ARRAY_LEN(sources); i++)
        khz = sources[i]();
    return khz;
}

void hostinfo_need_tsc(struct hostinfo *h)
{
    if (h->tsc_khz == 0)
        h->tsc_khz = tsc_measured();
}

bool hostinfo_same_tsc(uint64_t a_khz, uint64_t b_khz)
{
    uint64_t apart = a_khz > b_khz ? a_khz - b_khz : b_khz - a_khz;

    return a_khz == 0 || b_khz == 0 ||
           apart <= a_khz / (1000000 / HOSTINFO_TSC_PPM);
}

int hostinfo_read_names(struct hostinfo *out, struct qstill_error *err)
{
    struct utsname u;

    if (uname(&u) < 0)
        return err_errno(err, errno, "cannot read the host's name");
    if (read_line("/proc/sys/kernel/random/boot_id", out->boot_id) < 0)
        return err_set(err, QSTILL_E_FAILED,
                       "cannot read /proc/sys/kernel/random/boot_id");
    copy_text(out->hostname, u.nodename, strlen(u.nodename));
    copy_text(out->kernel, u.release, strlen(u.release));
    return 0;
}

int hostinfo_read(struct hostinfo *out, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf cpuinfo = BUF_INIT;
    struct hostinfo h = {0};

    if (hostinfo_read_names(&h, err) < 0)
        return err->code;
    if (read_text("/proc/cpuinfo", CPUINFO_MAX, &cpuinfo) == 0)
        hostinfo_parse_cpuinfo(&h, (const char *)cpuinfo.data);
    h.tsc_khz = tsc_khz();
    *out = h;
    return 0;
}

int hostinfo_file_sum(const char *path, char out[HOSTINFO_SUM_MAX],
                      struct qstill_error *err)
{
    CLEANUP(sum_stream_freep) struct sum_stream *sum = sum_stream_new();
    CLEANUP(freep) void *chunk = malloc(SUM_CHUNK);
    CLEANUP(closep) int fd = -1;
    struct stat st;
    uint64_t off = 0;
    size_t n;

    if (!sum || !chunk)
        return err_nomem(err);
    /* A binary may well be reached through a symbolic link. */
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", path);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return err_set(err, QSTILL_E_PRECONDITION, "%s is no regular file",
                       path);
    do {
        if (file_read_upto(fd, chunk, SUM_CHUNK, off, &n, err) < 0)
            return err_wrap(err, "%s", path);
        sum_stream_add(sum, chunk, n);
        off += n;
    } while (n == SUM_CHUNK);
    snprintf(out, HOSTINFO_SUM_MAX, "xxh3:%016llx",
             (unsigned long long)sum_stream_value(sum));
    return 0;
}
