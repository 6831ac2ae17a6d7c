/* SPDX-License-Identifier: MIT */
#include "launch_files_impl.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "launch_disk.h"
#include "launch_opts.h"
#include "layer_file.h"
#include "qcow2/info.h"

int files_judge(struct files *f, const struct launch_arg *arg,
                const struct qstill_error *why)
{
    switch (why->code) {
    case 0:
        return 0;
    case QSTILL_E_NOT_FOUND:
    case QSTILL_E_PERMISSION:
    case QSTILL_E_PRECONDITION:
    case QSTILL_E_CORRUPT:
        return f->tell(f->user, arg, why);
    default:
        *f->err = *why;
        return why->code;
    }
}

bool files_is_descriptor(const char *name)
{
    return strncmp(name, "/dev/fd", 7) == 0 ||
           strncmp(name, "/dev/std", 8) == 0 ||
           strncmp(name, "/proc/self/fd/", 14) == 0;
}

/* -------------------------------------------------------- single options */

enum how {
    READ,      /* a file */
    FIRMWARE,  /* a file, or the name of one of QEMU's own */
    LISTED,    /* files with ':' between them */
    PROGRAM,   /* "" and "no" are none */
    DIRECTORY, /* which QEMU reads */
    THERE,     /* somebody else's socket */
    MADE,      /* by QEMU, or written to */
};

/* Options that are a file's name. */
static const struct {
    const char *opt;
    enum how how;
} plain[] = {
    {"kernel", READ},   {"dtb", READ},        {"initrd", READ},
    {"bios", FIRMWARE}, {"readconfig", READ}, {"pidfile", MADE},
    {"D", MADE},
};

/* Options in which `key` is one. `implied`: the key of the first word;
 * `type`: with this word there, or NULL. */
static const struct {
    const char *opt, *implied, *type, *key;
    enum how how;
} keyed[] = {
    {"machine", "type", NULL, "kernel", READ},
    {"machine", "type", NULL, "initrd", READ},
    {"machine", "type", NULL, "dtb", READ},
    {"machine", "type", NULL, "firmware", FIRMWARE},
    {"M", "type", NULL, "kernel", READ},
    {"M", "type", NULL, "initrd", READ},
    {"M", "type", NULL, "dtb", READ},
    {"M", "type", NULL, "firmware", FIRMWARE},
    {"device", "driver", NULL, "romfile", FIRMWARE},
    {"device", "driver", "loader", "file", READ},
    {"device", "driver", "guest-loader", "kernel", READ},
    {"device", "driver", "guest-loader", "initrd", READ},
    {"device", "driver", "ipmi-bmc-sim", "sdrfile", READ},
    {"device", "driver", "ipmi-bmc-sim", "furdatafile", READ},
    {"net", NULL, NULL, "romfile", FIRMWARE},
    {"nic", NULL, NULL, "romfile", FIRMWARE},
    {"option-rom", "romfile", NULL, "romfile", FIRMWARE},
    {"fw_cfg", "name", NULL, "file", READ},
    {"smbios", NULL, NULL, "file", READ},
    {"smbios", NULL, NULL, "path", READ},
    {"acpitable", NULL, NULL, "file", LISTED},
    {"acpitable", NULL, NULL, "data", LISTED},
    {"object", "qom-type", "secret", "file", READ},
    {"object", "qom-type", "rng-random", "filename", READ},
    {"object", "qom-type", "authz-list-file", "filename", READ},
    {"object", "qom-type", "input-linux", "evdev", READ},
    {"object", "qom-type", "sev-guest", "dh-cert-file", READ},
    {"object", "qom-type", "sev-guest", "session-file", READ},
    {"object", "qom-type", "tls-creds-x509", "dir", DIRECTORY},
    {"object", "qom-type", "tls-creds-psk", "dir", DIRECTORY},
    {"netdev", "type", "tap", "script", PROGRAM},
    {"netdev", "type", "tap", "downscript", PROGRAM},
    {"nic", "type", "tap", "script", PROGRAM},
    {"nic", "type", "tap", "downscript", PROGRAM},
    {"net", "type", "tap", "script", PROGRAM},
    {"net", "type", "tap", "downscript", PROGRAM},
    {"fsdev", "fsdriver", "local", "path", DIRECTORY},
    {"virtfs", "fsdriver", "local", "path", DIRECTORY},
    {"tpmdev", "type", "passthrough", "path", READ},
    {"trace", "enable", NULL, "events", READ},
    {"trace", "enable", NULL, "file", MADE},
    {"object", "qom-type", "filter-dump", "file", MADE},
    {"chardev", "backend", "file", "path", MADE},
    {"chardev", "backend", NULL, "logfile", MADE},
};

static int look(struct files *f, const char *name, enum reach_kind kind,
                struct qstill_error *why)
{
    CLEANUP(freep) char *path = launch_resolve(f->rec->cwd, name);

    return path ? reach_file(&f->reach, path, kind, why) : err_nomem(why);
}

static int check_each(struct files *f, const struct launch_arg *arg,
                      const char *names)
{
    CLEANUP(freep) char *copy = strdup(names);
    char *rest = NULL;

    if (!copy)
        return err_nomem(f->err);
    for (char *name = strtok_r(copy, ":", &rest); name;
         name = strtok_r(NULL, ":", &rest)) {
        struct qstill_error why = {0};

        look(f, name, REACH_FILE, &why);
        if (files_judge(f, arg, &why) < 0)
            return f->err->code;
    }
    return 0;
}

static int check_name(struct files *f, const struct launch_arg *arg,
                      enum how how, const char *name)
{
    static const enum reach_kind kinds[] = {
        [READ] = REACH_FILE,           [FIRMWARE] = REACH_FILE,
        [LISTED] = REACH_FILE,         [PROGRAM] = REACH_PROGRAM,
        [DIRECTORY] = REACH_DIRECTORY, [THERE] = REACH_ANY,
        [MADE] = REACH_MADE,
    };
    struct qstill_error why = {0};

    if (!name || !*name || files_is_descriptor(name) ||
        (how == PROGRAM && strcmp(name, "no") == 0))
        return 0;
    if (how == LISTED)
        return check_each(f, arg, name);
    /* which is somewhere where QEMU was built to look */
    if (look(f, name, kinds[how], &why) < 0 && how == FIRMWARE &&
        !strchr(name, '/'))
        return 0;
    /* "FILE ARGUMENTS,FILE": modules of a multiboot kernel */
    if (why.code == QSTILL_E_NOT_FOUND && launch_arg_is(arg, "initrd") &&
        strpbrk(name, ", "))
        return 0;
    return files_judge(f, arg, &why);
}

static bool is_on(const struct opts *o, const char *key)
{
    const char *v = opts_get(o, key);

    return v && strcmp(v, "off") != 0 && strcmp(v, "no") != 0;
}

/* The unix socket of a -chardev. */
static int check_chardev(struct files *f, const struct launch_arg *arg)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};
    const char *type, *path;

    if (!arg->value || opts_parse(&o, arg->value, "backend", &ignored) < 0)
        return 0;
    type = opts_get(&o, "backend");
    path = opts_get(&o, "path");
    if (!type || !path || is_on(&o, "abstract") || strcmp(type, "socket") != 0)
        return 0;
    if (is_on(&o, "server"))
        return check_name(f, arg, MADE, path);
    /* it tries again by itself */
    return opts_has(&o, "reconnect") || opts_has(&o, "reconnect-ms")
               ? 0
               : check_name(f, arg, THERE, path);
}

/* "mon:unix:PATH,server=on", "file:PATH": of -serial and its like, -vnc. */
static int check_line(struct files *f, const struct launch_arg *arg)
{
    static const char *const lines[] = {"serial", "parallel",   "monitor",
                                        "qmp",    "qmp-pretty", "debugcon",
                                        "gdb",    "vnc"};
    const char *v = arg->value, *end;
    CLEANUP(freep) char *path = NULL;
    bool file, made, is = false;

    for (size_t i = 0; i < ARRAY_LEN(lines); i++)
        is = is || launch_arg_is(arg, lines[i]);
    if (!is || !v)
        return 0;
    v += strncmp(v, "mon:", 4) == 0 ? 4 : 0;
    file = strncmp(v, "file:", 5) == 0;
    if (!file && strncmp(v, "unix:", 5) != 0)
        return 0;
    v += 5;
    end = file ? v + strlen(v) : v + strcspn(v, ",");
    path = strndup(v, (size_t)(end - v));
    if (!path)
        return err_nomem(f->err);
    made = file || launch_arg_is(arg, "vnc") || strstr(end, ",server");
    return check_name(f, arg, made ? MADE : THERE, path);
}

/* -global DRIVER.romfile=FILE, or driver=DRIVER,property=romfile,value=FILE */
static int check_global(struct files *f, const struct launch_arg *arg,
                        const struct opts *o)
{
    const char *property = opts_get(o, "property");

    if (property && strcmp(property, "romfile") == 0)
        return check_name(f, arg, FIRMWARE, opts_get(o, "value"));
    for (size_t i = 0; i < o->count; i++) {
        const char *key = o->pairs[i].key;
        const char *dot = key ? strrchr(key, '.') : NULL;

        if (dot && strcmp(dot, ".romfile") == 0 &&
            check_name(f, arg, FIRMWARE, o->pairs[i].value) < 0)
            return f->err->code;
    }
    return 0;
}

static int check_option(struct files *f, const struct launch_arg *arg)
{
    for (size_t i = 0; i < ARRAY_LEN(plain); i++)
        if (launch_arg_is(arg, plain[i].opt))
            return check_name(f, arg, plain[i].how, arg->value);
    for (size_t i = 0; i < ARRAY_LEN(keyed); i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        struct qstill_error ignored = {0};
        const char *type;

        /* What cannot be parsed QEMU had not taken either. */
        if (!launch_arg_is(arg, keyed[i].opt) || !arg->value ||
            opts_parse(&o, arg->value, keyed[i].implied, &ignored) < 0)
            continue;
        type = keyed[i].type ? opts_get(&o, keyed[i].implied) : NULL;
        if ((!keyed[i].type || (type && strcmp(type, keyed[i].type) == 0)) &&
            check_name(f, arg, keyed[i].how, opts_get(&o, keyed[i].key)) < 0)
            return f->err->code;
    }
    if (launch_arg_is(arg, "chardev"))
        return check_chardev(f, arg);
    if (check_line(f, arg) < 0)
        return f->err->code;
    if (launch_arg_is(arg, "global") && arg->value) {
        CLEANUP(opts_fini) struct opts o = {0};
        struct qstill_error ignored = {0};

        return opts_parse(&o, arg->value, NULL, &ignored) < 0
                   ? 0
                   : check_global(f, arg, &o);
    }
    return 0;
}

/* What is below a disk's head. One that is not there yet will stand on what
 * preflight() has looked at; of a damaged one check() and QEMU tell more. */
static int check_head(struct files *f, const struct launch_disk *disk)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    struct qstill_error why = {0};

    if (!disk->head_path || !layer_is_qcow2(disk->head_format) ||
        layer_info(disk->head_path, disk->head_format, &info, &why) < 0)
        return 0;
    reach_chain(&f->reach, disk->head_path, disk->head_format, &why);
    return files_judge(f, NULL, &why);
}

int launch_files_check(const struct launch_record *rec,
                       const struct launch_args *args,
                       const struct launch_disk *disks, size_t disk_count,
                       launch_file_fn *tell, void *user,
                       struct qstill_error *err)
{
    struct files f = {.rec = rec,
                      .args = args,
                      .disks = disks,
                      .disk_count = disk_count,
                      .tell = tell,
                      .user = user,
                      .err = err};

    reach_init(&f.reach, rec->uid, rec->gid);
    for (size_t i = 0; i < args->count; i++)
        if (check_option(&f, &args->v[i]) < 0 ||
            files_check_images(&f, &args->v[i]) < 0)
            return err->code;
    for (size_t i = 0; i < disk_count; i++)
        if (check_head(&f, &disks[i]) < 0)
            return err->code;
    return 0;
}
