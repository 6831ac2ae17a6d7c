/* SPDX-License-Identifier: MIT */
/* What hinders a start from the launch record, told before anybody needs it. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "launch.h"
#include "launch_args.h"
#include "launch_disk.h"
#include "launch_files.h"

#define USE_LAUNCHER                                                           \
    "attach the VM with --launcher and a command that starts it"

/* How much of an argument a message shows. */
#define SHOWN 80

struct hinders {
    const struct launch_record *rec;
    const struct launch_disk *disks;
    size_t disk_count;
    struct launch_args args;
    struct launch_loose loose;
    struct launch_hinder_list list;
    struct qstill_error *err;
};

void launch_hinder_list_fini(struct launch_hinder_list *list)
{
    size_t i;

    for (i = 0; i < list->count; i++) {
        free(list->items[i].message);
        free(list->items[i].hint);
    }
    free(list->items);
    memset(list, 0, sizeof(*list));
}

static void hinders_fini(struct hinders *h)
{
    launch_args_fini(&h->args);
    launch_loose_fini(&h->loose);
    launch_hinder_list_fini(&h->list);
}

static int PRINTF_LIKE(5, 6)
    add(struct hinders *h, enum launch_weight weight, const char *code,
        const char *hint, const char *fmt, ...)
{
    struct launch_hinder item = {weight, code, NULL, strdup(hint)};
    struct qstill_error text; /* its setter knows what a message may hold */
    struct launch_hinder *items;
    char raw[sizeof(text.message)];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(raw, sizeof(raw), fmt, ap);
    va_end(ap);
    err_set(&text, QSTILL_E_PRECONDITION, "%s", raw);
    item.message = strdup(text.message);
    items = realloc(h->list.items, (h->list.count + 1) * sizeof(*items));
    if (items)
        h->list.items = items;
    if (!items || !item.message || !item.hint) {
        free(item.message);
        free(item.hint);
        return err_nomem(h->err);
    }
    items[h->list.count++] = item;
    return 0;
}

static bool is_one_of(const struct launch_arg *arg, const char *const *names,
                      size_t n)
{
    size_t i;

    for (i = 0; i < n; i++)
        if (launch_arg_is(arg, names[i]))
            return true;
    return false;
}

/* ---------------------------------------------------------- single options */

/* Options whose presence alone says it all. */
static const struct {
    const char *opt;
    enum launch_weight weight;
    const char *code, *message, *hint;
} plain_hinders[] = {
    {"add-fd", LAUNCH_BLOCKER, "inherited-fd",
     "passes a file that only the process that started QEMU had open",
     USE_LAUNCHER},
    {"chroot", LAUNCH_BLOCKER, "chroot",
     "changes the root directory, where the recorded paths mean others",
     USE_LAUNCHER},
    {"preconfig", LAUNCH_BLOCKER, "preconfig",
     "makes QEMU wait for commands of the one who started it", USE_LAUNCHER},
    {"snapshot", LAUNCH_BLOCKER, "snapshot-mode",
     "sends all writes to temporary files, which die with QEMU",
     "start the VM without -snapshot"},
    {"loadvm", LAUNCH_NOTE, "loadvm",
     "is left out when the VM is started again: its disks are newer",
     "nothing to do when that is meant"},
    {"readconfig", LAUNCH_NOTE, "readconfig",
     "is read again at the next start, as the file is then",
     "keep the file as it is while snapshots need it"},
    {"runas", LAUNCH_NOTE, "user-changed",
     "is left out: QEMU is started as that user from the beginning, and may "
     "then lack what only root can open (taps, /dev/vhost-net)",
     USE_LAUNCHER},
    {"nographic", LAUNCH_NOTE, "stdio-to-log",
     "used the terminal; after a start by qstill the output goes to the log",
     "use -display none with -serial and -monitor on sockets"},
    {"curses", LAUNCH_BLOCKER, "terminal", "needs a terminal", USE_LAUNCHER},
};

static int check_plain(struct hinders *h, const struct launch_arg *arg)
{
    size_t i;

    for (i = 0; i < ARRAY_LEN(plain_hinders); i++) {
        if (!launch_arg_is(arg, plain_hinders[i].opt))
            continue;
        return add(h, plain_hinders[i].weight, plain_hinders[i].code,
                   plain_hinders[i].hint, "-%s%s%.*s %s", arg->opt,
                   arg->value ? " " : "", SHOWN, arg->value ? arg->value : "",
                   plain_hinders[i].message);
    }
    return 0;
}

static bool is_stdio(const char *dev)
{
    if (strncmp(dev, "mon:", 4) == 0)
        dev += 4;
    return strncmp(dev, "stdio", 5) == 0 && (dev[5] == '\0' || dev[5] == ',');
}

static int check_stdio(struct hinders *h, const struct launch_arg *arg)
{
    static const char *const chars[] = {
        "serial",     "parallel", "monitor", "qmp",
        "qmp-pretty", "debugcon", "gdb",     "chardev",
    };

    if (launch_arg_is(arg, "display") && arg->value &&
        strncmp(arg->value, "curses", 6) == 0)
        return add(h, LAUNCH_BLOCKER, "terminal", USE_LAUNCHER,
                   "-display curses needs a terminal");
    if (!arg->value || !is_one_of(arg, chars, ARRAY_LEN(chars)) ||
        !is_stdio(arg->value))
        return 0;
    return add(h, LAUNCH_NOTE, "stdio-to-log",
               "use a socket instead of stdio when somebody must type",
               "-%s %.*s used the terminal; after a start by qstill the output "
               "goes to the log and there is no input",
               arg->opt, SHOWN, arg->value);
}

/* ---------------------------------------------------------- inherited files */

static bool key_is_fd(const struct opts_pair *p)
{
    static const char *const words[] = {
        "fd", "fds", "vhostfd", "vhostfds", "sock_fd",
    };
    const char *dot, *last = p->key;
    size_t i;

    if (!last || !*p->value)
        return false;
    dot = strrchr(last, '.');
    if (dot)
        last = dot + 1;
    /* addr.type=fd, {"addr":{"type":"fd"}} */
    if (strcmp(last, "type") == 0)
        return strcmp(p->value, "fd") == 0;
    for (i = 0; i < ARRAY_LEN(words); i++)
        if (strcmp(last, words[i]) == 0)
            return true;
    return false;
}

static bool opens_fd_path(const char *value)
{
    return strstr(value, "/dev/fd/") || strstr(value, "/proc/self/fd/") ||
           strstr(value, "/dev/fdset/");
}

static bool has_inherited_fd(const struct launch_arg *arg)
{
    static const char *const keyed[] = {
        "netdev", "net",    "nic",    "chardev", "device", "object",
        "fsdev",  "virtfs", "tpmdev", "display", "spice",
    };
    static const char *const words[] = {"append", "name", "smbios", "fw_cfg",
                                        "incoming"};
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error scratch = {0};
    size_t i;

    if (!arg->value || is_one_of(arg, words, ARRAY_LEN(words)))
        return false;
    if (opens_fd_path(arg->value))
        return true;
    /* What cannot be parsed QEMU had not taken either. */
    if (!is_one_of(arg, keyed, ARRAY_LEN(keyed)) ||
        opts_parse(&o, arg->value, "driver", &scratch) < 0)
        return false;
    for (i = 0; i < o.count; i++)
        if (key_is_fd(&o.pairs[i]))
            return true;
    return false;
}

static int check_fd(struct hinders *h, const struct launch_arg *arg)
{
    if (!has_inherited_fd(arg))
        return 0;
    return add(h, LAUNCH_BLOCKER, "inherited-fd", USE_LAUNCHER,
               "-%s %.*s uses a file that only the process that started QEMU "
               "had open",
               arg->opt, SHOWN, arg->value);
}

static int check_run_with(struct hinders *h, const struct launch_arg *arg)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error scratch = {0};

    if (!launch_arg_is(arg, "run-with") || !arg->value ||
        opts_parse(&o, arg->value, NULL, &scratch) < 0)
        return 0;
    if (opts_has(&o, "chroot") &&
        add(h, LAUNCH_BLOCKER, "chroot", USE_LAUNCHER,
            "-run-with chroot= changes the root directory, where the recorded "
            "paths mean others") < 0)
        return h->err->code;
    if (opts_has(&o, "user"))
        return add(h, LAUNCH_NOTE, "user-changed", USE_LAUNCHER,
                   "-run-with user= is left out: QEMU is started as that user "
                   "from the beginning, and may then lack what only root can "
                   "open (taps, /dev/vhost-net)");
    return 0;
}

/* Devices that live in a process of their own, which ended with QEMU. */
static int check_helpers(struct hinders *h, const struct launch_arg *arg)
{
    static const struct {
        const char *opt, *word;
    } helpers[] = {
        {"netdev", "vhost-user"},
        {"device", "vhost-user"},
        {"device", "vfio-user"},
        {"tpmdev", "emulator"},
    };
    size_t i;

    for (i = 0; arg->value && i < ARRAY_LEN(helpers); i++)
        if (launch_arg_is(arg, helpers[i].opt) &&
            strstr(arg->value, helpers[i].word))
            return add(h, LAUNCH_NOTE, "helper-process",
                       "see that it is started first, or " USE_LAUNCHER,
                       "-%s %.*s needs its own process, which qstill does not "
                       "start",
                       arg->opt, SHOWN, arg->value);
    return 0;
}

/* ------------------------------------------------------------ files, disks */

static int check_file(void *user, const struct launch_arg *arg,
                      const struct qstill_error *why)
{
    struct hinders *h = user;
    bool busy = why->code == QSTILL_E_BUSY;

    return add(h, LAUNCH_BLOCKER, busy ? "file-busy" : "file-missing",
               busy ? why->hint
               : why->code == QSTILL_E_PERMISSION
                   ? "give QEMU's user the right to it, or " USE_LAUNCHER
                   : "put the file back, or " USE_LAUNCHER,
               "%s%s%s%s", arg ? "-" : "",
               arg ? arg->word ? arg->opt : "drive" : "", arg ? ": " : "",
               why->message);
}

static int check_process(struct hinders *h)
{
    struct stat st;

    if (access(h->rec->exe, X_OK) < 0 &&
        add(h, LAUNCH_BLOCKER, "binary-missing",
            "install it again, or " USE_LAUNCHER,
            "the QEMU binary %s is gone or cannot be run", h->rec->exe) < 0)
        return h->err->code;
    if (stat(h->rec->cwd, &st) == 0 && S_ISDIR(st.st_mode))
        return 0;
    return add(h, LAUNCH_BLOCKER, "cwd-missing", "make the directory again",
               "the working directory %s of QEMU is gone", h->rec->cwd);
}

static int check_confined(struct hinders *h)
{
    struct qstill_error why = {0};

    if (confine_check(&h->rec->confine, h->rec->uid, launch_has_sandbox(h->rec),
                      &why) == 0 &&
        groups_check(&h->rec->groups, h->rec->uid, h->rec->gid, &why) == 0)
        return 0;
    return add(h, LAUNCH_BLOCKER, "confined", USE_LAUNCHER, "%s", why.message);
}

/* A relative name that leads nowhere: QEMU had moved to another directory
 * (-daemonize does) after it had opened the image. */
static bool is_lost(const struct hinders *h, const struct launch_disk *disk)
{
    CLEANUP(freep) char *path = NULL;
    struct stat st;

    if (disk->attach_path[0] == '/')
        return false;
    if (disk->head_path &&
        !launch_same_file(h->rec->cwd, disk->attach_path, disk->head_path))
        return false; /* replaced since; it may be gone by now */
    path = launch_resolve(h->rec->cwd, disk->attach_path);
    return path && stat(path, &st) < 0;
}

/* An image that cannot be put into its place hinders, as `code`. */
static int add_refusal(struct hinders *h, const char *code,
                       const struct qstill_error *why)
{
    if (why->code != QSTILL_E_PRECONDITION)
        return (*h->err = *why).code;
    return add(h, LAUNCH_BLOCKER, code, why->hint, "%s", why->message);
}

/* What the disks stood on, after all of them have other images. */
static int check_loose(struct hinders *h)
{
    for (size_t i = 0; i < h->loose.count; i++) {
        struct qstill_error why = {0};

        if (launch_disk_let_go(&h->args, &h->loose, i, &why) < 0 &&
            add_refusal(h, "disk-option", &why) < 0)
            return h->err->code;
    }
    return 0;
}

static int check_disk(struct hinders *h, const struct launch_disk *given)
{
    struct launch_disk disk = *given;
    struct disk_place place;
    struct qstill_error scratch = {0};
    const char *code = "disk-option";
    size_t places;

    if (is_lost(h, given))
        return add(h, LAUNCH_BLOCKER, "cwd-missing",
                   "start the VM with absolute paths, or " USE_LAUNCHER,
                   "disk %s: %s does not exist in %s, where QEMU is now",
                   disk.name, disk.attach_path, h->rec->cwd);
    if (!disk.head_path || !disk.head_format) {
        disk.head_path = "/head.qcow2"; /* any: it is not looked at */
        disk.head_format = "qcow2";
    }
    if (launch_disk_find(&h->args, h->rec->cwd, disk.attach_path, &place,
                         &places, h->err) < 0)
        return h->err->code;
    if (places != 1)
        code = places ? "disk-ambiguous" : "disk-not-in-argv";
    if (launch_disk_put(&h->args, h->rec->cwd, &disk, &h->loose, &scratch) == 0)
        return 0;
    return add_refusal(h, code, &scratch);
}

int launch_hinders(const struct launch_record *rec,
                   const struct launch_disk *disks, size_t disk_count, int pid,
                   struct launch_hinder_list *out, struct qstill_error *err)
{
    static int (*const checks[])(struct hinders *,
                                 const struct launch_arg *) = {
        check_plain, check_fd, check_run_with, check_stdio, check_helpers,
    };
    CLEANUP(hinders_fini)
    struct hinders h = {
        .rec = rec, .disks = disks, .disk_count = disk_count, .err = err};
    size_t i, k;

    if (launch_args_parse(&h.args, rec->argv, err) < 0 || check_process(&h) < 0)
        return err->code;
    for (i = 0; i < h.args.count; i++)
        for (k = 0; k < ARRAY_LEN(checks); k++)
            if (checks[k](&h, &h.args.v[i]) < 0)
                return err->code;
    if (launch_files_check(rec, &h.args, disks, disk_count, pid, check_file, &h,
                           err) < 0)
        return err->code;
    /* puts other images into h.args */
    for (i = 0; i < disk_count; i++)
        if (check_disk(&h, &disks[i]) < 0)
            return err->code;
    if (check_loose(&h) < 0 || check_confined(&h) < 0)
        return err->code;
    *out = h.list;
    memset(&h.list, 0, sizeof(h.list));
    return 0;
}

bool launch_has_tpm(const struct launch_record *rec)
{
    struct launch_args args = {0};
    struct qstill_error ignored = {0};
    bool found = false;

    if (launch_args_parse(&args, rec->argv, &ignored) == 0)
        for (size_t i = 0; i < args.count; i++)
            found = found || launch_arg_is(&args.v[i], "tpmdev");
    launch_args_fini(&args);
    return found;
}
