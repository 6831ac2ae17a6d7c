/* SPDX-License-Identifier: MIT */
#include "userdevs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "launch_args.h"
#include "launch_opts.h"
#include "qmp/machine.h"
#include "qmp/monitor.h"

#define PLUGGED " plugged"

/* ----------------------------------------------------------------- of a VM */

static int add_line(struct qmp_names *out, const struct qmp_device *d,
                    bool plugged, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    if (buf_printf(&b, "%s%s%s%s", d->type, *d->id ? "," : "", d->id,
                   plugged ? PLUGGED : "") < 0)
        return err_nomem(err);
    out->items[out->count] = buf_take_string(&b);
    return out->items[out->count++] ? 0 : err_nomem(err);
}

int userdevs_read(struct qstill_qmp *q, struct qmp_names *out,
                  struct qstill_error *err)
{
    CLEANUP(qmp_devices_fini) struct qmp_devices all = QMP_DEVICES_INIT;
    CLEANUP(qmp_names_fini) struct qmp_names lines = QMP_NAMES_INIT;

    if (qmp_devices_read(q, &all, err) < 0)
        return err->code;
    lines.items = calloc(all.count + 1, sizeof(*lines.items));
    if (!lines.items)
        return err_nomem(err);
    for (size_t i = 0; i < all.count; i++) {
        bool plugged = false;

        if (qmp_qom_get_bool(q, all.items[i].path, "hotplugged", &plugged,
                             err) < 0) {
            if (err->code != QSTILL_E_NOT_FOUND)
                return err->code;
            err_clear(err); /* it is being taken out */
        }
        if (add_line(&lines, &all.items[i], plugged, err) < 0)
            return err->code;
    }
    *out = lines;
    lines = (struct qmp_names)QMP_NAMES_INIT;
    return 0;
}

/* ---------------------------------------------------------------- one line */

static size_t type_len(const char *line)
{
    return strcspn(line, ", ");
}

static bool is_plugged(const char *line)
{
    size_t len = strlen(line), tail = strlen(PLUGGED);

    return len > tail && strcmp(line + len - tail, PLUGGED) == 0;
}

/* Where the id begins, and its length; NULL without one. */
static const char *id_of(const char *line, size_t *len)
{
    const char *comma = strchr(line, ',');

    if (!comma)
        return NULL;
    *len = strlen(comma + 1) - (is_plugged(line) ? strlen(PLUGGED) : 0);
    return comma + 1;
}

static bool has_id(char *const *list, size_t count, const char *id)
{
    for (size_t i = 0; i < count; i++) {
        size_t len;
        const char *is = id_of(list[i], &len);

        if (is && strlen(id) == len && strncmp(is, id, len) == 0)
            return true;
    }
    return false;
}

/* Of a type, or of any (NULL). */
static size_t count_nameless(char *const *list, size_t count, const char *type,
                             size_t len)
{
    size_t n = 0;

    for (size_t i = 0; i < count; i++)
        n += !strchr(list[i], ',') &&
             (!type ||
              (type_len(list[i]) == len && strncmp(list[i], type, len) == 0));
    return n;
}

/* ------------------------------------------------------- the command line */

static bool parse_device(const struct launch_arg *arg, struct opts *o)
{
    struct qstill_error ignored = {0};

    return launch_arg_is(arg, "device") && arg->value &&
           opts_parse(o, arg->value, "driver", &ignored) == 0;
}

static bool is_unreadable(const struct launch_arg *arg)
{
    CLEANUP(opts_fini) struct opts o = {0};

    return launch_arg_is(arg, "readconfig") ||
           (launch_arg_is(arg, "device") && arg->value &&
            !parse_device(arg, &o));
}

bool userdevs_made(const struct launch_args *args, const char *id)
{
    for (size_t i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        const char *has;

        if (is_unreadable(&args->v[i]))
            return true;
        if (!parse_device(&args->v[i], &o))
            continue;
        has = opts_get(&o, "id");
        if (has && strcmp(has, id) == 0)
            return true;
    }
    return false;
}

int userdevs_each_id(const struct launch_args *args, userdevs_id_fn *found,
                     void *user, struct qstill_error *err)
{
    for (size_t i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        const char *id;

        if (!parse_device(&args->v[i], &o))
            continue;
        id = opts_get(&o, "id");
        if (id && !opts_has(&o, "failover_pair_id") && found(user, id, err) < 0)
            return err->code;
    }
    return 0;
}

static size_t count_made_nameless(const struct launch_args *args,
                                  const char *type, size_t len)
{
    size_t n = 0;

    for (size_t i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        const char *driver;

        if (!parse_device(&args->v[i], &o) || opts_get(&o, "id"))
            continue;
        driver = opts_get(&o, "driver");
        n += !type || (driver && strlen(driver) == len &&
                       strncmp(driver, type, len) == 0);
    }
    return n;
}

/* ------------------------------------------------------------------ checks */

struct list {
    char *const *lines;
    size_t count;
    const char *whose;
};

int userdevs_is_more(const char *id, const char *whose,
                     struct qstill_error *err)
{
    err_set(err, QSTILL_E_PRECONDITION,
            "device %s is on the command line of QEMU, and is not in %s", id,
            whose);
    return err_hint(err, "start the VM without this device; one that runs "
                         "without it takes the memory back in its process");
}

static int check_id(void *user, const char *id, struct qstill_error *err)
{
    const struct list *l = user;

    return has_id(l->lines, l->count, id) ? 0
                                          : userdevs_is_more(id, l->whose, err);
}

int userdevs_check_more(const struct launch_args *args, char *const *list,
                        size_t count, const char *whose,
                        struct qstill_error *err)
{
    struct list l = {list, count, whose};
    size_t made = count_made_nameless(args, NULL, 0);
    size_t has = count_nameless(list, count, NULL, 0);

    if (userdevs_each_id(args, check_id, &l, err) < 0 || made <= has)
        return err->code;
    err_set(err, QSTILL_E_PRECONDITION,
            "%zu devices without an id are on the command line of QEMU, and "
            "%zu of them are not in %s",
            made, made - has, whose);
    return err_hint(err, "start the VM without them; one that runs without "
                         "them takes the memory back in its process");
}

/* CPUs come by -smp, too. */
static bool is_smp(const struct launch_args *args, const char *line,
                   uint64_t vcpus)
{
    static const char cpu[] = "-cpu";
    size_t len = type_len(line), tail = strlen(cpu);
    uint64_t made = 1;

    if (len < tail || strncmp(line + len - tail, cpu, tail) != 0)
        return false;
    for (size_t i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        struct qstill_error ignored = {0};
        const char *n;

        if (!launch_arg_is(&args->v[i], "smp") || !args->v[i].value)
            continue;
        if (opts_parse(&o, args->v[i].value, "cpus", &ignored) < 0)
            return true;
        n = opts_get(&o, "cpus");
        if (!n)
            return true; /* by sockets, cores, ...: QEMU knows */
        made = strtoull(n, NULL, 10);
    }
    return made >= vcpus;
}

static bool is_made(const struct launch_args *args, char *const *list,
                    size_t count, const char *line)
{
    size_t len;
    const char *id = id_of(line, &len);
    char text[256];

    for (size_t i = 0; i < args->count; i++)
        if (is_unreadable(&args->v[i]))
            return true;
    if (!id)
        return count_nameless(list, count, line, type_len(line)) <=
               count_made_nameless(args, line, type_len(line));
    snprintf(text, sizeof(text), "%.*s", (int)len, id);
    return userdevs_made(args, text);
}

int userdevs_check_plugged(const struct launch_args *args, char *const *list,
                           size_t count, uint64_t vcpus,
                           struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (!is_plugged(list[i]) || is_made(args, list, count, list[i]) ||
            is_smp(args, list[i], vcpus))
            continue;
        err_set(err, QSTILL_E_PRECONDITION,
                "device %.*s was plugged in, and is not on the command line of "
                "QEMU",
                (int)(strlen(list[i]) - strlen(PLUGGED)), list[i]);
        return err_hint(err, "start the VM with this device, or attach it with "
                             "a --launcher CMD that does");
    }
    return 0;
}
