/* SPDX-License-Identifier: MIT */
#include "groups.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static const char more_word[] = "more"; /* in place of too many */

static void add(struct groups *g, uint32_t gid)
{
    if (g->n == GROUPS_MAX) {
        g->more = true;
        g->n = 0;
    }
    if (!g->more)
        g->v[g->n++] = gid;
}

/* Up to the text's, or the line's, end: false when something else is there. */
static bool read_numbers(const char *text, struct groups *out)
{
    for (;;) {
        unsigned long gid;
        char *end;

        text += strspn(text, " \t");
        if (!*text || *text == '\n')
            return true;
        errno = 0;
        gid = strtoul(text, &end, 10);
        if (*text < '0' || *text > '9' || errno || gid > UINT32_MAX)
            return false;
        add(out, (uint32_t)gid);
        text = end;
    }
}

void groups_read(const char *status, struct groups *out)
{
    static const char label[] = "\nGroups:";
    const char *line = strstr(status, label);

    *out = (struct groups){0};
    out->known = line && read_numbers(line + sizeof(label) - 1, out);
}

bool groups_are_same(const struct groups *a, const struct groups *b)
{
    return a->known == b->known && a->more == b->more && a->n == b->n &&
           memcmp(a->v, b->v, a->n * sizeof(*a->v)) == 0;
}

int groups_parse(const char *text, struct groups *out, struct qstill_error *err)
{
    *out = (struct groups){0};
    if (!text)
        return 0;
    out->known = true;
    out->more = strcmp(text, more_word) == 0;
    if (!out->more && (!read_numbers(text, out) || out->more))
        return err_set(err, QSTILL_E_CORRUPT,
                       "\"%.64s\" is no list of a process's groups", text);
    return 0;
}

int groups_format(const struct groups *g, struct arena *a, char **out,
                  struct qstill_error *err)
{
    size_t room = g->n * sizeof("4294967295") + sizeof(more_word), used = 0;

    *out = NULL;
    if (!g->known)
        return 0;
    *out = arena_alloc(a, room);
    if (!*out)
        return err_nomem(err);
    snprintf(*out, room, "%s", g->more ? more_word : "");
    for (size_t i = 0; i < g->n; i++)
        used += (size_t)snprintf(*out + used, room - used, "%s%" PRIu32,
                                 i ? " " : "", g->v[i]);
    return 0;
}

/* -------------------------------------------------------------------- check */

static bool has(const struct groups *g, uint32_t also, uint32_t gid)
{
    bool found = gid == also;

    for (size_t i = 0; !found && i < g->n; i++)
        found = g->v[i] == gid;
    return found;
}

static bool has_all(const struct groups *g, uint32_t also,
                    const struct groups *of, uint32_t of_also)
{
    for (size_t i = 0; i < of->n; i++)
        if (!has(g, also, of->v[i]))
            return false;
    return has(g, also, of_also);
}

/* What a process of ours has when nobody changes it; root's gets the primary
 * group that is asked for in any case. */
static bool are_ours(const struct groups *g, uint32_t gid)
{
    struct groups ours = {.known = true};
    gid_t list[GROUPS_MAX];
    int n = getgroups(GROUPS_MAX, list);

    for (int i = 0; i < n; i++)
        add(&ours, list[i]);
    return n >= 0 && (geteuid() != 0 || gid == getegid()) &&
           has_all(&ours, getegid(), g, gid) &&
           has_all(g, gid, &ours, getegid());
}

static bool first_word_is(const char *path, const char *word)
{
    FILE *f = fopen(path, "re");
    char text[16];
    bool is = f && fscanf(f, "%15s", text) == 1 && strcmp(text, word) == 0;

    if (f)
        fclose(f);
    return is;
}

/* A user namespace knows some of the host's groups, or none but one. */
static bool is_mapped(uint32_t gid)
{
    FILE *f = fopen("/proc/self/gid_map", "re");
    unsigned long first, count;
    bool found = !f;

    while (!found && fscanf(f, "%lu %*u %lu", &first, &count) == 2)
        found = gid >= first && gid - first < count;
    if (f)
        fclose(f);
    return found;
}

static bool may_set(const struct groups *g)
{
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[_LINUX_CAPABILITY_U32S_3] = {{0}};

    if (syscall(SYS_capget, &h, d) < 0 ||
        !(d[CAP_TO_INDEX(CAP_SETGID)].effective & CAP_TO_MASK(CAP_SETGID)) ||
        first_word_is("/proc/self/setgroups", "deny"))
        return false;
    for (size_t i = 0; i < g->n; i++)
        if (!is_mapped(g->v[i]))
            return false;
    return true;
}

int groups_check(const struct groups *g, uint32_t uid, uint32_t gid,
                 struct qstill_error *err)
{
    bool same_user = uid == geteuid();

    /* one that can be no other user is told so when it starts QEMU */
    if (!g->known || (!same_user && geteuid() != 0))
        return 0;
    if (g->more)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "QEMU is in more than %d groups, and a new process "
                       "would not be kept to them",
                       GROUPS_MAX);
    if ((same_user && are_ours(g, gid)) || may_set(g))
        return 0;
    return err_set(err, QSTILL_E_PRECONDITION,
                   "QEMU is in other groups than a new process would be, and "
                   "qstill may not change them (CAP_SETGID)");
}
