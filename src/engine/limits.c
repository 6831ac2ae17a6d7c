/* SPDX-License-Identifier: MIT */
#include "limits.h"

#include <inttypes.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"

static const struct kind {
    const char *name; /* prlimit(1)'s */
    const char *line; /* what the line in /proc/PID/limits begins with */
    int resource;
    bool vital;
} kinds[] = {
    {"as", "Max address space", RLIMIT_AS, true},
    {"core", "Max core file size", RLIMIT_CORE, false},
    {"cpu", "Max cpu time", RLIMIT_CPU, true},
    {"data", "Max data size", RLIMIT_DATA, true},
    {"fsize", "Max file size", RLIMIT_FSIZE, true},
    {"locks", "Max file locks", RLIMIT_LOCKS, false},
    {"memlock", "Max locked memory", RLIMIT_MEMLOCK, false},
    {"msgqueue", "Max msgqueue size", RLIMIT_MSGQUEUE, false},
    {"nice", "Max nice priority", RLIMIT_NICE, false},
    {"nofile", "Max open files", RLIMIT_NOFILE, false},
    {"nproc", "Max processes", RLIMIT_NPROC, false},
    {"rss", "Max resident set", RLIMIT_RSS, false},
    {"rtprio", "Max realtime priority", RLIMIT_RTPRIO, false},
    {"rttime", "Max realtime timeout", RLIMIT_RTTIME, false},
    {"sigpending", "Max pending signals", RLIMIT_SIGPENDING, false},
    {"stack", "Max stack size", RLIMIT_STACK, false},
};

static const struct kind *kind_of(int resource)
{
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        if (kinds[i].resource == resource)
            return &kinds[i];
    return NULL;
}

static bool parse_value(const char *text, char end, uint64_t *out,
                        const char **behind)
{
    static const char no_limit[] = "unlimited";
    char *stop;

    if (strncmp(text, no_limit, sizeof(no_limit) - 1) == 0) {
        *out = RLIM_INFINITY;
        *behind = text + sizeof(no_limit);
        return text[sizeof(no_limit) - 1] == end;
    }
    *out = strtoull(text, &stop, 10);
    *behind = stop + 1;
    return text[0] >= '0' && text[0] <= '9' && *stop == end;
}

static bool value_of(char *word, uint64_t *out)
{
    const char *behind;

    return word && parse_value(word, '\0', out, &behind);
}

static bool take_line(char *line, struct limits *l)
{
    char *at, *save;

    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        size_t len = strlen(kinds[i].line);

        if (strncmp(line, kinds[i].line, len) != 0 || line[len] != ' ')
            continue;
        at = line + len;
        l->v[i].resource = kinds[i].resource;
        return value_of(strtok_r(at, " ", &save), &l->v[i].soft) &&
               value_of(strtok_r(NULL, " ", &save), &l->v[i].hard);
    }
    return false; /* the title, or one that is not known yet */
}

/* prlimit(2) needs CAP_SYS_RESOURCE for a process of another user. */
void limits_read(pid_t pid, struct limits *out)
{
    struct limits l = {.n = 0};
    char path[64], line[256];
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/limits", (int)pid);
    f = fopen(path, "re");
    if (!f)
        return;
    while (fgets(line, sizeof(line), f))
        l.n += take_line(line, &l);
    fclose(f);
    if (l.n == ARRAY_LEN(kinds))
        *out = l;
}

static int parse_word(const char *word, struct limits *out,
                      struct qstill_error *err)
{
    size_t len = strcspn(word, "=");
    const char *at = word + len + 1;
    struct qstill_limit l = {0};

    if (!word[len] || !parse_value(at, ':', &l.soft, &at) ||
        !parse_value(at, '\0', &l.hard, &at))
        return err_set(err, QSTILL_E_CORRUPT, "\"%.64s\" is no limit", word);
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        if (strlen(kinds[i].name) == len &&
            strncmp(word, kinds[i].name, len) == 0) {
            out->v[i].soft = l.soft;
            out->v[i].hard = l.hard;
        }
    return 0;
}

int limits_parse(const char *text, struct limits *out, struct qstill_error *err)
{
    char word[64];

    out->n = 0;
    if (!text)
        return 0;
    for (; out->n < ARRAY_LEN(kinds); out->n++)
        out->v[out->n] = (struct qstill_limit){kinds[out->n].resource,
                                               RLIM_INFINITY, RLIM_INFINITY};
    while (*text) {
        size_t len = strcspn(text, " ");

        snprintf(word, sizeof(word), "%.*s", (int)min_u64(len, 1000), text);
        if (parse_word(word, out, err) < 0)
            return err->code;
        text += len + (text[len] == ' ');
    }
    return 0;
}

static const char *value_text(uint64_t value, char text[24])
{
    if (value == RLIM_INFINITY)
        return "unlimited";
    snprintf(text, 24, "%" PRIu64, value);
    return text;
}

int limits_format(const struct limits *l, struct arena *a, char **out,
                  struct qstill_error *err)
{
    char *text = l->n ? arena_strdup(a, "") : NULL;
    char soft[24], hard[24];

    for (size_t i = 0; text && i < l->n; i++)
        if (l->v[i].soft != RLIM_INFINITY || l->v[i].hard != RLIM_INFINITY)
            text = arena_printf(a, "%s%s%s=%s:%s", text, *text ? " " : "",
                                kind_of(l->v[i].resource)->name,
                                value_text(l->v[i].soft, soft),
                                value_text(l->v[i].hard, hard));
    *out = text;
    return l->n && !text ? err_nomem(err) : 0;
}

/* root may lack it, in a container say. */
static bool may_raise(void)
{
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[_LINUX_CAPABILITY_U32S_3] = {{0}};

    return syscall(SYS_capget, &h, d) == 0 &&
           (d[CAP_TO_INDEX(CAP_SYS_RESOURCE)].effective &
            CAP_TO_MASK(CAP_SYS_RESOURCE));
}

int limits_check(const struct limits *l, struct qstill_error *err)
{
    char had[24], have[24];

    for (size_t i = 0; i < l->n; i++) {
        const struct kind *k = kind_of(l->v[i].resource);
        struct rlimit r;

        if (!k->vital ||
            getrlimit((enum __rlimit_resource)k->resource, &r) < 0 ||
            l->v[i].soft <= r.rlim_max || may_raise())
            continue;
        err_set(err, QSTILL_E_PRECONDITION,
                "QEMU has a limit of %s=%s, and would get %s from here",
                k->name, value_text(l->v[i].soft, had),
                value_text(r.rlim_max, have));
        return err_hint(err, "raise it for qstill (ulimit -H -a), or run it "
                             "with CAP_SYS_RESOURCE");
    }
    return 0;
}
