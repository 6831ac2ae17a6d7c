/* SPDX-License-Identifier: MIT */
#include "launch_ram.h"

#include <string.h>

#include "base/cleanup.h"
#include "launch_disk.h"
#include "launch_opts.h"

#define OBJECTS "/objects/"

/* Where the RAM of a machine without a memory backend of its own is. */
static const char *const default_blocks[] = {
    "pc.ram",
    "microvm.ram",
    "mach-virt.ram",
};

/* What an object of any memory-backend type keeps when it becomes a file. */
static const char *const kept_keys[] = {
    "qom-type", "id", "dump", "merge", "host-nodes", "policy", "reserve",
};

#define HOLES  "would punch holes into the saved RAM"
#define SHARES "shares the RAM with another process"
#define KEEPS  "keeps its content in the file"
#define WRITES "writes into the RAM at each reset, unseen"

/* Devices that a private mapping of our file would break, or that would break
 * the file. Found anywhere in the arguments of these options. */
static const struct {
    const char *opt, *word, *why;
    bool readonly_helps; /* a balloon then only gives nothing back */
} devices_against[] = {
    {"device", "virtio-balloon", HOLES, true},
    {"balloon", "virtio", HOLES, true},
    {"device", "virtio-mem", HOLES, false},
    {"device", "vhost-user", SHARES, false},
    {"netdev", "vhost-user", SHARES, false},
    {"device", "vfio-user", SHARES, false},
    {"device", "x-pci-proxy-dev", SHARES, false},
    {"device", "ivshmem-plain", SHARES, false},
    {"device", "nvdimm", KEEPS, false},
    {"device", "virtio-pmem", KEEPS, false},
    {"device", "data-len", WRITES, false}, /* a loader's */
};

static bool is_against(const struct launch_arg *arg, size_t k, bool readonly)
{
    return launch_arg_is(arg, devices_against[k].opt) &&
           strstr(arg->value, devices_against[k].word) &&
           !(readonly && devices_against[k].readonly_helps);
}

static int check_devices(const struct launch_args *args, bool readonly,
                         struct qstill_error *err)
{
    size_t i, k;

    for (i = 0; i < args->count; i++) {
        const struct launch_arg *arg = &args->v[i];

        for (k = 0; arg->value && k < ARRAY_LEN(devices_against); k++)
            if (is_against(arg, k, readonly))
                return err_set(err, QSTILL_E_PRECONDITION,
                               "RAM cannot be mapped from files: -%s %.80s %s",
                               arg->opt, arg->value, devices_against[k].why);
    }
    return 0;
}

/* The object of a memory backend with this id: *arg is its argument, or
 * args->count. */
static int find_object(const struct launch_args *args, const char *id,
                       size_t *arg, struct qstill_error *err)
{
    size_t i;

    *arg = args->count;
    for (i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        struct qstill_error scratch = {0};
        const char *type, *name;

        if (!launch_arg_is(&args->v[i], "object") || !args->v[i].value)
            continue;
        if (opts_parse(&o, args->v[i].value, "qom-type", &scratch) < 0)
            continue;
        type = opts_get(&o, "qom-type");
        name = opts_get(&o, "id");
        if (!type || !name || strcmp(name, id) != 0 ||
            strncmp(type, "memory-backend-", 15) != 0)
            continue;
        if (*arg != args->count)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "two memory backends are named %s", id);
        *arg = i;
    }
    return 0;
}

static bool is_kept(const char *key)
{
    size_t i;

    for (i = 0; i < ARRAY_LEN(kept_keys); i++) {
        size_t n = strlen(kept_keys[i]);

        /* "host-nodes.0=" is a list element */
        if (strncmp(key, kept_keys[i], n) == 0 &&
            (key[n] == '\0' || key[n] == '.'))
            return true;
    }
    return false;
}

/* Drops what belongs to the old type, in place of opts_del by name: the types
 * differ from version to version, what we keep does not. */
static int keep_common(struct opts *o, struct qstill_error *err)
{
    size_t i = 0;

    while (i < o->count) {
        CLEANUP(freep) char *key = NULL;

        if (!o->pairs[i].key || is_kept(o->pairs[i].key)) {
            i++;
            continue;
        }
        key = strdup(o->pairs[i].key);
        if (!key)
            return err_nomem(err);
        opts_del(o, key);
        i = 0;
    }
    return 0;
}

static int fill_object(struct opts *o, const char *id,
                       const struct launch_ram *ram, bool readonly,
                       struct qstill_error *err)
{
    /* Machine types before 4.0 name a file backend's block by its whole path;
     * the block must have the name that the stream lists. */
    bool canonical = strncmp(ram->id, OBJECTS, strlen(OBJECTS)) == 0;

    if (opts_set(o, "qom-type", "memory-backend-file", err) < 0 ||
        opts_set(o, "id", id, err) < 0 ||
        opts_set_size(o, "size", ram->size, err) < 0 ||
        opts_set(o, "mem-path", ram->path, err) < 0 ||
        opts_set_bool(o, "share", false, err) < 0)
        return err->code;
    if (readonly && (opts_set_bool(o, "readonly", true, err) < 0 ||
                     opts_set(o, "rom", "off", err) < 0))
        return err->code;
    return opts_set_bool(o, "x-use-canonical-path-for-ramblock-id", canonical,
                         err);
}

static int replace_object(struct launch_arg *arg, const char *id,
                          const struct launch_ram *ram, bool readonly,
                          struct qstill_error *err)
{
    CLEANUP(opts_fini) struct opts o = {0};
    char *text;

    if (opts_parse(&o, arg->value, "qom-type", err) < 0)
        return err->code;
    if (strcmp(opts_get(&o, "qom-type"), "memory-backend-epc") == 0)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "RAM block %s is enclave memory", ram->id);
    if (keep_common(&o, err) < 0 ||
        fill_object(&o, id, ram, readonly, err) < 0 ||
        opts_emit(&o, &text, err) < 0)
        return err->code;
    launch_arg_replace(arg, text);
    return 0;
}

/* A name that a RAM file has in a store, and hardly any other. */
static bool is_saved_ram(const char *path)
{
    const char *snapshots = strstr(path, "/snapshots/");
    const char *memory = snapshots ? strstr(snapshots, "/memory/") : NULL;
    size_t n = strlen(path);

    return memory && !strchr(memory + strlen("/memory/"), '/') && n > 4 &&
           strcmp(path + n - 4, ".ram") == 0;
}

static int unmap_one(struct launch_arg *arg, struct qstill_error *err)
{
    static const char *const gone[] = {
        "mem-path",
        "share",
        "readonly",
        "rom",
    };
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error scratch = {0};
    const char *type, *path;
    char *text;
    size_t i;

    if (opts_parse(&o, arg->value, "qom-type", &scratch) < 0)
        return 0;
    type = opts_get(&o, "qom-type");
    path = opts_get(&o, "mem-path");
    if (!type || strcmp(type, "memory-backend-file") != 0 || !path ||
        !is_saved_ram(path))
        return 0;
    for (i = 0; i < ARRAY_LEN(gone); i++)
        opts_del(&o, gone[i]);
    if (opts_set(&o, "qom-type", "memory-backend-ram", err) < 0 ||
        opts_emit(&o, &text, err) < 0)
        return err->code;
    launch_arg_replace(arg, text);
    return 0;
}

int launch_ram_unmap(struct launch_args *args, struct qstill_error *err)
{
    size_t i;

    for (i = 0; i < args->count; i++)
        if (launch_arg_is(&args->v[i], "object") && args->v[i].value &&
            unmap_one(&args->v[i], err) < 0)
            return err->code;
    return 0;
}

/* Whether the command line leaves the RAM to QEMU's default backend, as far
 * as it shows. */
static bool has_default_ram(const struct launch_args *args)
{
    size_t i;

    for (i = 0; i < args->count; i++) {
        const struct launch_arg *arg = &args->v[i];

        if (launch_arg_is(arg, "readconfig"))
            return false;
        if (!arg->value)
            continue;
        if ((launch_arg_is(arg, "machine") || launch_arg_is(arg, "M")) &&
            strstr(arg->value, "memory-backend="))
            return false;
        if (launch_arg_is(arg, "numa") && strstr(arg->value, "memdev="))
            return false;
    }
    return true;
}

static int add_backend(struct launch_args *args, const char *id,
                       const struct launch_ram *ram, bool readonly,
                       struct qstill_error *err)
{
    CLEANUP(opts_fini) struct opts object = {0};
    CLEANUP(opts_fini) struct opts machine = {0};
    CLEANUP(freep) char *object_text = NULL;
    CLEANUP(freep) char *machine_text = NULL;

    if (opts_parse(&object, "memory-backend-file", "qom-type", err) < 0 ||
        fill_object(&object, id, ram, readonly, err) < 0 ||
        opts_emit(&object, &object_text, err) < 0 ||
        opts_set(&machine, "memory-backend", id, err) < 0 ||
        opts_emit(&machine, &machine_text, err) < 0 ||
        launch_args_add(args, "-object", object_text, err) < 0)
        return err->code;
    /* QEMU merges several -machine. */
    return launch_args_add(args, "-machine", machine_text, err);
}

/* Options that say how the default RAM, or any, is to be had; QEMU refuses
 * -mem-path beside a memory backend, and -mem-prealloc would read it all. */
static void drop_option(struct launch_args *args, const char *opt)
{
    size_t i = 0;

    while (i < args->count)
        if (launch_arg_is(&args->v[i], opt))
            launch_args_drop(args, i);
        else
            i++;
}

static bool is_default_block(const char *id)
{
    size_t i;

    for (i = 0; i < ARRAY_LEN(default_blocks); i++)
        if (strcmp(id, default_blocks[i]) == 0)
            return true;
    return false;
}

static int not_made(const char *id, struct qstill_error *err)
{
    return err_set(err, QSTILL_E_PRECONDITION,
                   "RAM block %s is no memory backend of the command line of "
                   "QEMU",
                   id);
}

/* The id of the backend that makes the block. */
static const char *backend_of(const char *block)
{
    size_t n = strlen(OBJECTS);

    return strncmp(block, OBJECTS, n) == 0 ? block + n : block;
}

static bool is_on(const char *value)
{
    return strcmp(value, "on") == 0 || strcmp(value, "true") == 0 ||
           strcmp(value, "yes") == 0 || strcmp(value, "y") == 0;
}

static int map_default(struct launch_args *args, const char *id,
                       const struct launch_ram *ram, bool readonly,
                       struct qstill_error *err)
{
    if (!is_default_block(id) || !has_default_ram(args))
        return not_made(ram->id, err);
    drop_option(args, "mem-path");
    return add_backend(args, id, ram, readonly, err);
}

static int map_one(struct launch_args *args, const struct launch_ram *ram,
                   bool readonly, struct qstill_error *err)
{
    const char *id = backend_of(ram->id);
    size_t arg;

    if (find_object(args, id, &arg, err) < 0)
        return err->code;
    if (arg == args->count)
        return map_default(args, id, ram, readonly, err);
    return replace_object(&args->v[arg], id, ram, readonly, err);
}

int launch_ram_map(struct launch_args *args, const struct launch_change *change,
                   struct qstill_error *err)
{
    size_t i;

    if (change->mapped_count == 0)
        return 0;
    if (check_devices(args, change->mapped_readonly, err) < 0)
        return err->code;
    drop_option(args, "mem-prealloc");
    for (i = 0; i < change->mapped_count; i++)
        if (map_one(args, &change->mapped[i], change->mapped_readonly, err) < 0)
            return err->code;
    return 0;
}

static bool has_option(const struct launch_args *args, const char *opt)
{
    size_t i;

    for (i = 0; i < args->count; i++)
        if (launch_arg_is(&args->v[i], opt))
            return true;
    return false;
}

/* Does anything of the command line take the object? By whatever key; no
 * device takes its own name for it. */
static bool is_taken(const struct launch_args *args, const char *id)
{
    size_t i, k;

    for (i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        struct qstill_error scratch = {0};
        const char *value = args->v[i].value;

        if (!value || launch_arg_is(&args->v[i], "object"))
            continue;
        if (opts_parse(&o, value, "driver", &scratch) < 0 && strstr(value, id))
            return true;
        for (k = 0; k < o.count; k++)
            if (o.pairs[k].key && strcmp(o.pairs[k].key, "id") != 0 &&
                o.pairs[k].value && strcmp(o.pairs[k].value, id) == 0)
                return true;
    }
    return false;
}

int launch_check_ram(const struct launch_record *rec, const char *const *ids,
                     size_t count, struct qstill_error *err)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    bool has_default, known = false;
    size_t i, arg;

    if (launch_args_parse(&args, rec->argv, err) < 0)
        return err->code;
    if (has_option(&args, "readconfig"))
        return 0;
    has_default = has_default_ram(&args);
    for (i = 0; i < count; i++)
        known = known || is_default_block(backend_of(ids[i]));
    /* The default RAM of a machine that we do not know may be any of them. */
    if (has_default && !known)
        return 0;
    for (i = 0; i < count; i++) {
        const char *id = backend_of(ids[i]);

        if (find_object(&args, id, &arg, err) < 0)
            return err->code;
        if (arg == args.count && !(has_default && is_default_block(id)))
            return not_made(ids[i], err);
        if (arg < args.count && !is_taken(&args, id))
            return err_set(err, QSTILL_E_PRECONDITION,
                           "RAM block %s has no device of the command line of "
                           "QEMU",
                           ids[i]);
    }
    return 0;
}

static bool is_nvdimm_of(const struct launch_arg *arg, const char *id)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error scratch = {0};
    const char *driver, *memdev;

    if (!launch_arg_is(arg, "device") || !arg->value ||
        opts_parse(&o, arg->value, "driver", &scratch) < 0)
        return false;
    driver = opts_get(&o, "driver");
    memdev = opts_get(&o, "memdev");
    return driver && memdev && strcmp(driver, "nvdimm") == 0 &&
           strcmp(backend_of(memdev), id) == 0;
}

char *launch_ram_file(const struct launch_record *rec, const char *id)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error scratch = {0};
    const char *share, *path;
    size_t arg;

    id = backend_of(id);
    if (launch_args_parse(&args, rec->argv, &scratch) < 0 ||
        find_object(&args, id, &arg, &scratch) < 0 || arg == args.count ||
        opts_parse(&o, args.v[arg].value, "qom-type", &scratch) < 0 ||
        strcmp(opts_get(&o, "qom-type"), "memory-backend-file") != 0)
        return NULL;
    path = opts_get(&o, "mem-path");
    share = opts_get(&o, "share");
    for (size_t i = 0; path && share && is_on(share) && i < args.count; i++)
        if (is_nvdimm_of(&args.v[i], id))
            return launch_resolve(rec->cwd, path);
    return NULL;
}

bool launch_ram_is_kept(const struct launch_record *rec, const char *id)
{
    CLEANUP(freep) char *file = launch_ram_file(rec, id);

    return file != NULL;
}

bool launch_ram_is_readonly(const struct launch_record *rec, const char *id)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error scratch = {0};
    const char *readonly, *rom;
    size_t arg;

    if (launch_args_parse(&args, rec->argv, &scratch) < 0 ||
        find_object(&args, backend_of(id), &arg, &scratch) < 0 ||
        arg == args.count ||
        opts_parse(&o, args.v[arg].value, "qom-type", &scratch) < 0)
        return false;
    readonly = opts_get(&o, "readonly");
    rom = opts_get(&o, "rom");
    return readonly && is_on(readonly) && !(rom && strcmp(rom, "off") == 0);
}
