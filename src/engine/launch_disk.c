/* SPDX-License-Identifier: MIT */
/* Another image in the place of a disk's image. */
#include "launch_disk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "launch_backing.h"

/* A key of a node: its prefix ("file.file.") and one word, or a whole key of
 * an option behind a prefix. */
struct node_key {
    char text[NODE_PREFIX_MAX + OPTS_KEY_MAX];
};

static struct node_key key_of(const char *prefix, const char *word)
{
    struct node_key k;
    int n = snprintf(k.text, sizeof(k.text), "%s%s", prefix, word);

    if (n < 0 || (size_t)n >= sizeof(k.text))
        k.text[0] = '\0'; /* not with our prefixes */
    return k;
}

static bool in_list(const char *const *list, size_t n, const char *s)
{
    size_t i;

    for (i = 0; i < n; i++)
        if (strcmp(list[i], s) == 0)
            return true;
    return false;
}

/* Drivers that stand directly over a file; all others are filters or
 * protocols, under which a format node of our own is put. */
static bool is_format(const char *driver)
{
    static const char *const formats[] = {
        "raw",  "qcow2",     "qcow",  "qed", "vdi",   "vmdk", "vpc",
        "vhdx", "parallels", "cloop", "dmg", "bochs", "luks",
    };

    return in_list(formats, ARRAY_LEN(formats), driver);
}

/* A protocol node that is used as a disk holds what a raw one would. */
static const char *plain_format(const char *format)
{
    static const char *const raw[] = {"raw", "file", "host_device"};

    return in_list(raw, ARRAY_LEN(raw), format) ? "raw" : format;
}

static int refuse(struct qstill_error *err, const struct launch_disk *disk,
                  const char *why)
{
    err_set(err, QSTILL_E_PRECONDITION,
            "disk %s: the command line of QEMU gives %s for %s, which a new "
            "image cannot take over",
            disk->name, why, disk->attach_path);
    return err_hint(err, "attach the VM with --launcher and a command that "
                         "starts it");
}

/* A put at work. */
struct put {
    struct launch_args *args;
    const char *cwd;
    const struct launch_disk *disk;
    char *loose; /* a node that was below the disk's, by name */
};

static int drop_backing(struct put *p, struct opts *o, const char *prefix,
                        struct qstill_error *err)
{
    struct node_key key = key_of(prefix, "backing");
    const char *v = opts_get(o, key.text), *why;

    if (!opts_has(o, key.text))
        return 0;
    why = launch_backing_differs(p->args, p->cwd, o, prefix,
                                 p->disk->attach_path);
    if (why)
        return refuse(err, p->disk, why);
    if (v && *v) {
        free(p->loose);
        p->loose = strdup(v);
        if (!p->loose)
            return err_nomem(err);
    }
    opts_del(o, key.text);
    return 0;
}

static int check_options(const struct opts *o, const char *prefix,
                         const struct launch_disk *disk,
                         struct qstill_error *err)
{
    static const struct {
        const char *word, *why;
    } bad[] = {
        {"encrypt", "an encryption key"},
        {"key-secret", "an encryption key"},
        {"data-file", "an external data file"},
    };
    const char *offset = opts_get(o, key_of(prefix, "offset").text);
    const char *temp = opts_get(o, key_of(prefix, "snapshot").text);
    size_t i;

    for (i = 0; i < ARRAY_LEN(bad); i++)
        if (opts_has(o, key_of(prefix, bad[i].word).text))
            return refuse(err, disk, bad[i].why);
    if (offset && strspn(offset, "0") != strlen(offset))
        return refuse(err, disk, "an offset into the file");
    if (temp && strcmp(temp, "off") != 0)
        return refuse(err, disk,
                      "\"snapshot\" (writes go to a temporary file)");
    return 0;
}

/* What only a qcow2 node takes. */
static void drop_qcow2_options(struct opts *o, const char *prefix)
{
    static const char *const words[] = {
        "lazy-refcounts",       "cache-size",
        "l2-cache-size",        "l2-cache-entry-size",
        "refcount-cache-size",  "cache-clean-interval",
        "pass-discard-request", "pass-discard-snapshot",
        "pass-discard-other",   "discard-no-unref",
        "overlap-check",        "overlap-check.template",
    };

    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        opts_del(o, key_of(prefix, words[i]).text);
}

/* Makes the format node at `prefix` one of the head's format. `word` is the
 * key of its format; without one QEMU had guessed. */
static int change_format(struct put *p, struct opts *o, const char *prefix,
                         const char *word, struct qstill_error *err)
{
    const struct launch_disk *disk = p->disk;
    struct node_key key = key_of(prefix, word);
    const char *was = opts_get(o, key.text);

    if (was &&
        strcmp(plain_format(was), plain_format(disk->attach_format)) != 0)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "disk %s: %s is %s for the VM and %s in the command "
                       "line of QEMU",
                       disk->name, disk->attach_path, disk->attach_format, was);
    if (check_options(o, prefix, disk, err) < 0 ||
        drop_backing(p, o, prefix, err) < 0)
        return err->code;
    /* Of a raw node: the overlay has its own size, and starts at 0. */
    opts_del(o, key_of(prefix, "size").text);
    opts_del(o, key_of(prefix, "offset").text);
    if (strcmp(disk->head_format, "raw") == 0)
        drop_qcow2_options(o, prefix);
    return opts_set(o, key.text, disk->head_format, err);
}

/* The protocol node at `prefix`: the head is a file, whatever was there. */
static int change_file(struct opts *o, const char *prefix,
                       const struct launch_disk *disk, struct qstill_error *err)
{
    struct node_key driver = key_of(prefix, "driver");

    if (opts_get(o, driver.text) && opts_set(o, driver.text, "file", err) < 0)
        return err->code;
    return opts_set(o, key_of(prefix, "filename").text, disk->head_path, err);
}

static bool stays_above(const char *word)
{
    static const char *const generic[] = {
        "driver",      "node-name", "read-only",     "auto-read-only",
        "force-share", "discard",   "detect-zeroes", "cache",
    };
    char first[32];

    snprintf(first, sizeof(first), "%.*s", (int)strcspn(word, "."), word);
    return in_list(generic, ARRAY_LEN(generic), first);
}

/* A protocol node that is used without a format node becomes one, over a file
 * node inside it that keeps the options of its kind. */
static int wrap_file(struct opts *o, const char *prefix,
                     const struct launch_disk *disk, struct qstill_error *err)
{
    struct node_key inner = key_of(prefix, "file.");
    size_t i, n = strlen(prefix);

    if (strcmp(plain_format(disk->attach_format), "raw") != 0)
        return refuse(err, disk, "no format node");
    for (i = 0; i < o->count; i++) {
        struct opts_pair *p = &o->pairs[i];
        char *key = NULL;

        if (!p->key || strncmp(p->key, prefix, n) != 0 ||
            stays_above(p->key + n))
            continue;
        key = strdup(key_of(inner.text, p->key + n).text);
        if (!key)
            return err_nomem(err);
        free(p->key);
        p->key = key;
    }
    if (opts_set(o, key_of(prefix, "driver").text, disk->head_format, err) < 0)
        return err->code;
    if (opts_set(o, key_of(inner.text, "driver").text, "file", err) < 0)
        return err->code;
    return opts_set(o, key_of(inner.text, "filename").text, disk->head_path,
                    err);
}

static int store(struct launch_arg *arg, const struct opts *o,
                 struct qstill_error *err)
{
    char *text;

    if (opts_emit(o, &text, err) < 0)
        return err->code;
    launch_arg_replace(arg, text);
    return 0;
}

/* ------------------------------------------------------------ kinds of place
 */

static int put_value(struct launch_arg *arg, const struct launch_disk *disk,
                     struct qstill_error *err)
{
    char *text;

    /* An image that stands alone is -hda, and as such it cannot be taken for
     * the argument of an option before it that we do not know. */
    if (!arg->word && launch_arg_name(arg, "-hda", err) < 0)
        return err->code;
    text = strdup(disk->head_path);
    if (!text)
        return err_nomem(err);
    /* No format is named here: QEMU finds a qcow2 head by its magic. */
    launch_arg_replace(arg, text);
    return 0;
}

static const char *drive_format_word(const struct opts *o)
{
    return opts_get(o, "driver") && !opts_get(o, "format") ? "driver"
                                                           : "format";
}

/* -set changes a -drive from another place of the command line. */
static int check_set(const struct launch_args *args, const struct opts *o,
                     const struct launch_disk *disk, struct qstill_error *err)
{
    const char *id = opts_get(o, "id");
    char start[OPTS_KEY_MAX];
    size_t i;

    if (!id)
        return 0;
    snprintf(start, sizeof(start), "drive.%s.", id);
    for (i = 0; i < args->count; i++)
        if (launch_arg_is(&args->v[i], "set") && args->v[i].value &&
            strncmp(args->v[i].value, start, strlen(start)) == 0)
            return refuse(err, disk, "options with -set");
    return 0;
}

static int put_drive(struct put *p, const struct disk_place *place,
                     struct qstill_error *err)
{
    CLEANUP(opts_fini) struct opts o = {0};
    const struct launch_disk *disk = p->disk;
    struct launch_arg *arg = &p->args->v[place->arg];

    if (launch_disk_opts(arg, &o, err) < 0 ||
        check_set(p->args, &o, disk, err) < 0 ||
        change_format(p, &o, "", drive_format_word(&o), err) < 0 ||
        opts_set(&o, "file", disk->head_path, err) < 0)
        return err->code;
    if (opts_get(&o, "file.driver") &&
        opts_set(&o, "file.driver", "file", err) < 0)
        return err->code;
    return store(arg, &o, err);
}

/* The node that reads the file node inside the same option, when that is a
 * format node: its prefix and the key of its format. */
static bool inner_parent(const struct opts *o, bool drive, const char *prefix,
                         struct node_key *parent, const char **word)
{
    size_t n = strlen(prefix);
    const char *driver;

    if (n == 0)
        return false;
    snprintf(parent->text, sizeof(parent->text), "%.*s",
             (int)(n - strlen("file.")), prefix);
    *word = drive && !*parent->text ? drive_format_word(o) : "driver";
    driver = opts_get(o, key_of(parent->text, *word).text);
    return !driver || is_format(driver);
}

/* The one format node of another -blockdev that reads `node`: *found is its
 * argument, or args->count. Filters over the node are no parents in this
 * sense. */
static int outer_parent(const struct launch_args *args, const char *node,
                        const struct launch_disk *disk, size_t *arg,
                        struct node_key *parent, struct qstill_error *err)
{
    size_t i, n = 0;

    *arg = args->count;
    for (i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        struct node_key prefix = {""};
        struct qstill_error scratch = {0};
        int depth;

        if (!launch_arg_is(&args->v[i], "blockdev") ||
            launch_disk_opts(&args->v[i], &o, &scratch) < 0)
            continue;
        for (depth = 0; depth < NODE_DEPTH_MAX; depth++) {
            const char *ref = opts_get(&o, key_of(prefix.text, "file").text);
            const char *drv = opts_get(&o, key_of(prefix.text, "driver").text);

            if (ref && strcmp(ref, node) == 0 && drv && is_format(drv)) {
                *arg = i;
                *parent = prefix;
                n++;
            }
            prefix = key_of(prefix.text, "file.");
        }
    }
    if (n > 1)
        return refuse(err, disk, "several format nodes");
    return 0;
}

/* A file node that stands alone: changes the format node over it, in another
 * argument, or becomes one itself. */
static int put_lone_node(struct put *p, size_t arg, struct opts *o,
                         struct qstill_error *err)
{
    CLEANUP(opts_fini) struct opts over = {0};
    const struct launch_disk *disk = p->disk;
    struct launch_args *args = p->args;
    const char *node = opts_get(o, "node-name");
    struct node_key parent;
    size_t other = args->count;

    if (node && outer_parent(args, node, disk, &other, &parent, err) < 0)
        return err->code;
    if (other == args->count)
        return wrap_file(o, "", disk, err);
    if (other == arg)
        return refuse(err, disk, "a node that reads itself");
    if (launch_disk_opts(&args->v[other], &over, err) < 0 ||
        change_format(p, &over, parent.text, "driver", err) < 0 ||
        change_file(o, "", disk, err) < 0)
        return err->code;
    return store(&args->v[other], &over, err);
}

static int put_node(struct put *p, const struct disk_place *place,
                    struct qstill_error *err)
{
    CLEANUP(opts_fini) struct opts o = {0};
    const struct launch_disk *disk = p->disk;
    struct launch_arg *arg = &p->args->v[place->arg];
    bool drive = launch_arg_is(arg, "drive");
    struct node_key parent;
    const char *word;

    if (launch_disk_opts(arg, &o, err) < 0)
        return err->code;
    if (drive && check_set(p->args, &o, disk, err) < 0)
        return err->code;
    if (inner_parent(&o, drive, place->prefix, &parent, &word)) {
        if (change_format(p, &o, parent.text, word, err) < 0 ||
            change_file(&o, place->prefix, disk, err) < 0)
            return err->code;
    } else if (drive && !*place->prefix) {
        return refuse(err, disk, "no format node"); /* driver=file,filename= */
    } else if (*place->prefix) {
        if (wrap_file(&o, place->prefix, disk, err) < 0)
            return err->code;
    } else if (put_lone_node(p, place->arg, &o, err) < 0) {
        return err->code;
    }
    return store(arg, &o, err);
}

static int find_one(const struct launch_args *args, const char *cwd,
                    const struct launch_disk *disk, struct disk_place *place,
                    struct qstill_error *err)
{
    size_t places;

    if (launch_disk_find(args, cwd, disk->attach_path, place, &places, err) < 0)
        return err->code;
    if (places == 1)
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "disk %s: the command line of QEMU names %s %s", disk->name,
            disk->attach_path, places ? "more than once" : "nowhere");
    return err_hint(err, "%s",
                    places ? "each disk needs an image of its own"
                           : "it was plugged in later or comes from "
                             "a configuration file: attach the VM "
                             "with --launcher");
}

static int put_at(struct put *p, const struct disk_place *place,
                  struct qstill_error *err)
{
    switch (place->kind) {
    case PLACE_VALUE:
        return put_value(&p->args->v[place->arg], p->disk, err);
    case PLACE_DRIVE:
        return put_drive(p, place, err);
    case PLACE_NODE:
        return put_node(p, place, err);
    }
    return 0;
}

void launch_loose_fini(struct launch_loose *l)
{
    for (size_t i = 0; i < l->count; i++)
        free(l->items[i].node);
    free(l->items);
    *l = (struct launch_loose){0};
}

/* Takes the node over. */
static int loose_add(struct launch_loose *l, char *node,
                     const struct launch_disk *disk, struct qstill_error *err)
{
    void *items = realloc(l->items, (l->count + 1) * sizeof(*l->items));

    if (!items) {
        free(node);
        return err_nomem(err);
    }
    l->items = items;
    l->items[l->count].node = node;
    l->items[l->count++].disk = *disk;
    return 0;
}

int launch_disk_let_go(struct launch_args *args,
                       const struct launch_loose *loose, size_t i,
                       struct qstill_error *err)
{
    return launch_backing_prune(args, loose->items[i].node)
               ? 0
               : refuse(err, &loose->items[i].disk,
                        "a base that another option has open for writing");
}

int launch_disk_put(struct launch_args *args, const char *cwd,
                    const struct launch_disk *disk, struct launch_loose *loose,
                    struct qstill_error *err)
{
    struct put p = {args, cwd, disk, NULL};
    struct disk_place place;

    if (find_one(args, cwd, disk, &place, err) < 0)
        return err->code;
    if (strcmp(disk->attach_format, disk->head_format) == 0 &&
        launch_same_file(cwd, disk->attach_path, disk->head_path))
        return 0;
    /* the disk's first image, again; where no format is named QEMU would guess
     * what a raw one is by what the guest wrote */
    if (strcmp(disk->head_format, "qcow2") != 0 &&
        (strcmp(disk->head_format, "raw") != 0 || place.kind == PLACE_VALUE))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "disk %s: %s is %s, and only a qcow2 image can take the "
                       "place of %s",
                       disk->name, disk->head_path, disk->head_format,
                       disk->attach_path);
    if (put_at(&p, &place, err) < 0) {
        free(p.loose);
        return err->code;
    }
    return p.loose ? loose_add(loose, p.loose, disk, err) : 0;
}
