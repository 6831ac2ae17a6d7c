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
    case QSTILL_E_BUSY:
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

/* Options that are a file's name. */
static const struct {
    const char *opt;
    enum files_how how;
} plain[] = {
    {"kernel", READ},   {"dtb", READ},        {"initrd", READ},
    {"bios", FIRMWARE}, {"readconfig", READ}, {"pidfile", PIDFILE},
    {"D", MADE},
};

/* Options in which `key` is one. `implied`: the key of the first word;
 * `type`: with this word there, or NULL. Not here: a tap's "downscript", which
 * QEMU runs when it ends, and only says when it cannot. */
static const struct {
    const char *opt, *implied, *type, *key;
    enum files_how how;
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
    {"nic", "type", "tap", "script", PROGRAM},
    {"net", "type", "tap", "script", PROGRAM},
    {"fsdev", "fsdriver", "local", "path", DIRECTORY},
    {"virtfs", "fsdriver", "local", "path", DIRECTORY},
    {"tpmdev", "type", "passthrough", "path", READ},
    {"trace", "enable", NULL, "events", READ},
    {"trace", "enable", NULL, "file", MADE},
    {"object", "qom-type", "filter-dump", "file", MADE},
    {"chardev", "backend", "file", "path", MADE},
    {"chardev", "backend", "file", "input-path", READ},
    {"chardev", "backend", NULL, "logfile", MADE},
    {"chardev", "backend", "serial", "path", DEVICE},
    {"chardev", "backend", "tty", "path", DEVICE},
    {"chardev", "backend", "parallel", "path", DEVICE},
    {"chardev", "backend", "parport", "path", DEVICE},
};

int files_look(const struct files *f, const char *name, enum reach_kind kind,
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

        files_look(f, name, REACH_FILE, &why);
        if (files_judge(f, arg, &why) < 0)
            return f->err->code;
    }
    return 0;
}

int files_check_name(struct files *f, const struct launch_arg *arg,
                     enum files_how how, const char *name)
{
    static const enum reach_kind kinds[] = {
        [READ] = REACH_FILE,           [FIRMWARE] = REACH_FILE,
        [LISTED] = REACH_FILE,         [PROGRAM] = REACH_PROGRAM,
        [DIRECTORY] = REACH_DIRECTORY, [PEER] = REACH_PEER,
        [MADE] = REACH_MADE,           [SOCKET] = REACH_SOCKET,
        [PIDFILE] = REACH_MADE,        [DEVICE] = REACH_DEVICE,
    };
    enum reach_kind kind =
        how == PIDFILE && f->pid > 0 ? REACH_REMADE : kinds[how];
    struct qstill_error why = {0};

    if (!name || !*name || files_is_descriptor(name) ||
        (how == PROGRAM && strcmp(name, "no") == 0))
        return 0;
    if (how == LISTED)
        return check_each(f, arg, name);
    /* which is somewhere where QEMU was built to look */
    if (files_look(f, name, kind, &why) < 0 && how == FIRMWARE &&
        !strchr(name, '/'))
        return 0;
    /* "FILE ARGUMENTS,FILE": modules of a multiboot kernel */
    if (why.code == QSTILL_E_NOT_FOUND && launch_arg_is(arg, "initrd") &&
        strpbrk(name, ", "))
        return 0;
    return files_judge(f, arg, &why);
}

/* -global DRIVER.romfile=FILE, or driver=DRIVER,property=romfile,value=FILE */
static int check_global(struct files *f, const struct launch_arg *arg,
                        const struct opts *o)
{
    const char *property = opts_get(o, "property");

    if (property && strcmp(property, "romfile") == 0)
        return files_check_name(f, arg, FIRMWARE, opts_get(o, "value"));
    for (size_t i = 0; i < o->count; i++) {
        const char *key = o->pairs[i].key;
        const char *dot = key ? strrchr(key, '.') : NULL;

        if (dot && strcmp(dot, ".romfile") == 0 &&
            files_check_name(f, arg, FIRMWARE, o->pairs[i].value) < 0)
            return f->err->code;
    }
    return 0;
}

static int check_option(struct files *f, const struct launch_arg *arg)
{
    for (size_t i = 0; i < ARRAY_LEN(plain); i++)
        if (launch_arg_is(arg, plain[i].opt))
            return files_check_name(f, arg, plain[i].how, arg->value);
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
            files_check_name(f, arg, keyed[i].how, opts_get(&o, keyed[i].key)) <
                0)
            return f->err->code;
    }
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
                       int pid, launch_file_fn *tell, void *user,
                       struct qstill_error *err)
{
    struct files f = {.rec = rec,
                      .args = args,
                      .disks = disks,
                      .disk_count = disk_count,
                      .pid = pid,
                      .tell = tell,
                      .user = user,
                      .err = err};

    reach_init_groups(&f.reach, rec->uid, rec->gid, &rec->groups);
    f.reach.cwd = rec->cwd;
    for (size_t i = 0; i < args->count; i++)
        if (check_option(&f, &args->v[i]) < 0 ||
            files_check_lines(&f, &args->v[i]) < 0 ||
            files_check_images(&f, &args->v[i]) < 0)
            return err->code;
    for (size_t i = 0; i < disk_count; i++)
        if (check_head(&f, &disks[i]) < 0)
            return err->code;
    return 0;
}
