/* SPDX-License-Identifier: MIT */
#include "confine.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "confine_impl.h"
#include "mounts.h"

/* --------------------------------------------------------------------- read */

/* Of "Label:\tVALUE"; 0 when there is no such line. */
static uint64_t status_number(const char *status, const char *label, int base)
{
    const char *line = strstr(status, label);

    return line ? strtoull(line + strlen(label), NULL, base) : 0;
}

static bool has_our_root(int procfd)
{
    struct stat theirs, ours;

    return fstatat(procfd, "root/.", &theirs, 0) < 0 || stat("/", &ours) < 0 ||
           (theirs.st_dev == ours.st_dev && theirs.st_ino == ours.st_ino);
}

static void read_boot(char *out, size_t size)
{
    CLEANUP(closep)
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, out, size - 1);

    out[n > 0 ? n : 0] = '\0';
    out[strcspn(out, " \n")] = '\0';
}

static unsigned caps_known(void)
{
    unsigned n = 0;

    while (n < 64 && prctl(PR_CAPBSET_READ, n, 0, 0, 0) >= 0)
        n++;
    return n;
}

void confine_read(int procfd, const char *status, struct confine *out)
{
    CLEANUP(closep) int self = open("/proc/self", O_PATH | O_CLOEXEC);
    struct confine c = {.caps = caps_known()};

    if (self < 0 || !strstr(status, "\nCapBnd:"))
        return;
    c.known = true;
    c.no_new_privs = status_number(status, "\nNoNewPrivs:", 10) != 0;
    c.filters = (unsigned)status_number(status, "\nSeccomp_filters:", 10);
    c.bounding = status_number(status, "\nCapBnd:", 16);
    c.permitted = status_number(status, "\nCapPrm:", 16);
    c.inheritable = status_number(status, "\nCapInh:", 16);
    c.ambient = status_number(status, "\nCapAmb:", 16);
    read_boot(c.boot, sizeof(c.boot));
    c.since = confine_since(procfd);
    for (unsigned i = 0; i < CONFINE_SPACES; i++) {
        uint64_t ours = confine_space_of(self, i);

        c.space[i] = confine_space_of(procfd, i);
        if (ours && c.space[i] && ours != c.space[i])
            c.apart |= CONFINE_BIT(i);
    }
    if ((c.apart & CONFINE_BIT(CONFINE_MNT)) && mounts_are_ours(procfd))
        c.apart ^= CONFINE_BIT(CONFINE_MNT) | CONFINE_BIT(CONFINE_VIEW);
    /* with other mounts it is another anyway */
    if (!(c.apart & CONFINE_BIT(CONFINE_MNT)) && !has_our_root(procfd))
        c.apart |= CONFINE_BIT(CONFINE_ROOT);
    *out = c;
}

bool confine_is_same(const struct confine *a, const struct confine *b)
{
    return a->known == b->known && a->no_new_privs == b->no_new_privs &&
           a->filters == b->filters && a->caps == b->caps &&
           a->bounding == b->bounding && a->permitted == b->permitted &&
           a->inheritable == b->inheritable && a->ambient == b->ambient &&
           strcmp(a->boot, b->boot) == 0 && a->since == b->since &&
           memcmp(a->space, b->space, sizeof(a->space)) == 0 &&
           a->apart == b->apart;
}

/* -------------------------------------------------------------------- words */

static int parse_apart(char *list, struct confine *out)
{
    char *save, *name = strtok_r(list, ",", &save);

    for (; name; name = strtok_r(NULL, ",", &save)) {
        unsigned i = 0;

        while (i < CONFINE_APART && strcmp(name, confine_names[i]) != 0)
            i++;
        if (i == CONFINE_APART)
            return -1;
        out->apart |= CONFINE_BIT(i);
    }
    return 0;
}

static int parse_number(const char *text, int base, uint64_t *out)
{
    char *end;

    *out = strtoull(text, &end, base);
    return *text && !*end ? 0 : -1;
}

static int parse_word(char *word, struct confine *out)
{
    uint64_t nnp = 0, filters = 0, caps = 0;
    const struct {
        const char *key;
        int base;
        uint64_t *value;
    } numbers[] = {
        {"nnp", 10, &nnp},
        {"filters", 10, &filters},
        {"caps", 10, &caps},
        {"bnd", 16, &out->bounding},
        {"prm", 16, &out->permitted},
        {"inh", 16, &out->inheritable},
        {"amb", 16, &out->ambient},
        {"since", 10, &out->since},
        {"user", 10, &out->space[CONFINE_USER]},
        {"pid", 10, &out->space[CONFINE_PID]},
        {"mnt", 10, &out->space[CONFINE_MNT]},
        {"net", 10, &out->space[CONFINE_NET]},
        {"ipc", 10, &out->space[CONFINE_IPC]},
        {"uts", 10, &out->space[CONFINE_UTS]},
    };
    char *value = strchr(word, '=');

    if (!value)
        return -1;
    *value++ = '\0';
    if (strcmp(word, "apart") == 0)
        return parse_apart(value, out);
    if (strcmp(word, "boot") == 0) {
        snprintf(out->boot, sizeof(out->boot), "%s", value);
        return 0;
    }
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
        if (strcmp(word, numbers[i].key) != 0)
            continue;
        if (parse_number(value, numbers[i].base, numbers[i].value) < 0)
            return -1;
        out->no_new_privs = out->no_new_privs || nnp;
        out->filters = filters ? (unsigned)filters : out->filters;
        out->caps = caps ? (unsigned)caps : out->caps;
        return 0;
    }
    return -1;
}

int confine_parse(const char *text, struct confine *out,
                  struct qstill_error *err)
{
    CLEANUP(freep) char *copy = NULL;
    char *save, *word;

    *out = (struct confine){0};
    if (!text)
        return 0;
    copy = strdup(text);
    if (!copy)
        return err_nomem(err);
    for (word = strtok_r(copy, " ", &save); word;
         word = strtok_r(NULL, " ", &save))
        if (parse_word(word, out) < 0 || out->caps > 64)
            return err_set(err, QSTILL_E_CORRUPT,
                           "\"%.64s\" says nothing of a process", word);
    out->known = true;
    return 0;
}

int confine_format(const struct confine *c, struct arena *a, char **out,
                   struct qstill_error *err)
{
    const char *comma = "";
    char *text = NULL;

    *out = NULL;
    if (!c->known)
        return 0;
    text = arena_printf(
        a,
        "nnp=%d filters=%u caps=%u bnd=%" PRIx64 " prm=%" PRIx64 " inh=%" PRIx64
        " amb=%" PRIx64 " boot=%s since=%012" PRIu64,
        c->no_new_privs, c->filters, c->caps, c->bounding, c->permitted,
        c->inheritable, c->ambient, c->boot, c->since);
    for (unsigned i = 0; text && i < CONFINE_SPACES; i++)
        text = arena_printf(a, "%s %s=%" PRIu64, text, confine_names[i],
                            c->space[i]);
    if (text)
        text = arena_printf(a, "%s apart=", text);
    for (unsigned i = 0; text && i < CONFINE_APART; i++)
        if (c->apart & CONFINE_BIT(i)) {
            text = arena_printf(a, "%s%s%s", text, comma, confine_names[i]);
            comma = ",";
        }
    *out = text;
    return text ? 0 : err_nomem(err);
}

/* -------------------------------------------------------------------- check */

static int read_self(struct confine *out, uint64_t *effective)
{
    CLEANUP(closep) int dir = open("/proc/self", O_PATH | O_CLOEXEC);
    CLEANUP(closep) int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    char text[8192];
    ssize_t n;

    *out = (struct confine){0};
    if (dir < 0 || fd < 0)
        return -1;
    n = read(fd, text, sizeof(text) - 1);
    if (n <= 0)
        return -1;
    text[n] = '\0';
    confine_read(dir, text, out);
    *effective = status_number(text, "\nCapEff:", 16);
    return out->known ? 0 : -1;
}

static int check_spaces(const struct confine *c, const struct confine *self,
                        struct qstill_error *err)
{
    unsigned apart = confine_apart(c, self);
    char names[64] = "";
    size_t n = 0;

    for (unsigned i = 0; i < CONFINE_SPACES; i++)
        if (apart & CONFINE_BIT(i))
            n += (size_t)snprintf(names + n, sizeof(names) - n, "%s%s",
                                  n ? ", " : "", confine_names[i]);
    if (n)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "QEMU is in other namespaces (%s) than qstill, and a "
                       "new process would not be kept in them",
                       names);
    if (apart & CONFINE_BIT(CONFINE_ROOT))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "QEMU has another root directory than qstill, and a new "
                       "process would not be kept in it");
    return 0;
}

/* As root a new program has all that its bounding set lets it have. */
static uint64_t bounding_of(const struct confine *c, uint32_t uid)
{
    uint64_t later = c->caps < 64 ? ~(uint64_t)0 << c->caps : 0;

    return later | (uid == 0 ? c->bounding & c->permitted : c->bounding);
}

int confine_check(const struct confine *c, uint32_t uid, bool own_sandbox,
                  struct qstill_error *err)
{
    struct confine self;
    uint64_t effective;
    bool may_drop;

    if (!c->known || read_self(&self, &effective) < 0)
        return 0;
    if (check_spaces(c, &self, err) < 0)
        return err->code;
    /* who came from where does not show: QEMU's own is one more (libseccomp) */
    if (c->filters > self.filters + own_sandbox)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "QEMU was started under a seccomp filter, which a new "
                       "process would not have");
    may_drop = (effective & (uint64_t)1 << CAP_SETPCAP) ||
               (uid != 0 && c->no_new_privs);
    if ((self.bounding & ~bounding_of(c, uid)) && !may_drop)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "QEMU was started without capabilities that a new "
                       "process would have or could get, and qstill may not "
                       "take them away (CAP_SETPCAP)");
    return 0;
}

void confine_give(const struct confine *c, uint32_t uid,
                  struct qstill_launch *launch)
{
    if (!c->known)
        return;
    launch->confined = true;
    /* QEMU's own filter brings it anyway */
    launch->no_new_privs = c->no_new_privs;
    launch->caps_bounding = bounding_of(c, uid);
    launch->caps_inheritable = c->inheritable & launch->caps_bounding;
    launch->caps_ambient = c->ambient;
}
