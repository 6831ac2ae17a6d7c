/* SPDX-License-Identifier: MIT */
/* `qstill image info|map|check`: what an image says, without a VM. The JSON has
 * the shape of qemu-img's. */
#include "verbs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "output.h"
#include "qstill-image.h"
#include "text.h"

#define FORMAT_OPTION                                                          \
    {                                                                          \
        "format", "qcow2|raw", OPTION_CHOICE, false,                           \
            "format of FILE (default: by its first bytes)"                     \
    }

static const struct option_spec format_options[] = {
    FORMAT_OPTION,
    {NULL, NULL, OPTION_FLAG, false, NULL},
};

/* -------------------------------------------------------------------- info */

static void snapshots_json(struct out *o, const struct qstill_image_info *info)
{
    out_array(o, "snapshots");
    for (size_t i = 0; i < info->snapshot_count; i++) {
        const struct qstill_image_snapshot *s = &info->snapshots[i];

        out_object(o, NULL);
        out_text(o, "id", s->id);
        out_text(o, "name", s->name);
        out_uint(o, "vm-state-size", s->vm_state_size);
        out_uint(o, "date-sec", s->date_sec);
        out_uint(o, "date-nsec", s->date_nsec);
        out_uint(o, "vm-clock-sec", s->vm_clock_ns / 1000000000u);
        out_uint(o, "vm-clock-nsec", s->vm_clock_ns % 1000000000u);
        if (s->icount != UINT64_MAX)
            out_uint(o, "icount", s->icount);
        out_end(o);
    }
    out_end(o);
}

static void bitmaps_json(struct out *o, const struct qstill_image_info *info)
{
    out_array(o, "bitmaps");
    for (size_t i = 0; i < info->bitmap_count; i++) {
        const struct qstill_image_bitmap *b = &info->bitmaps[i];

        out_object(o, NULL);
        out_text(o, "name", b->name);
        out_uint(o, "granularity", b->granularity);
        out_array(o, "flags");
        if (b->in_use)
            out_text(o, NULL, "in-use");
        if (b->enabled)
            out_text(o, NULL, "auto");
        out_end(o);
        out_end(o);
    }
    out_end(o);
}

static void luks_json(struct out *o, const struct qstill_image_luks *l)
{
    out_text(o, "ivgen-alg", l->ivgen_alg);
    if (l->ivgen_hash_alg)
        out_text(o, "ivgen-hash-alg", l->ivgen_hash_alg);
    out_text(o, "hash-alg", l->hash_alg);
    out_text(o, "cipher-alg", l->cipher_alg);
    out_text(o, "cipher-mode", l->cipher_mode);
    out_text(o, "uuid", l->uuid);
    out_uint(o, "payload-offset", l->payload_offset);
    out_uint(o, "master-key-iters", l->master_key_iters);
    out_array(o, "slots");
    for (size_t i = 0; i < l->slot_count; i++) {
        const struct qstill_image_luks_slot *s = &l->slots[i];

        out_object(o, NULL);
        out_bool(o, "active", s->active);
        if (s->active) {
            out_uint(o, "iters", s->iters);
            out_uint(o, "stripes", s->stripes);
        }
        out_uint(o, "key-offset", s->key_offset);
        out_end(o);
    }
    out_end(o);
}

static void encrypt_json(struct out *o, const struct qstill_image_info *info)
{
    bool luks = info->encryption && strcmp(info->encryption, "luks") == 0;

    /* without its header qemu-img has nothing to say, either */
    if (!info->encryption || (luks && !info->luks))
        return;
    out_object(o, "encrypt");
    out_text(o, "format", info->encryption);
    if (luks)
        luks_json(o, info->luks);
    out_end(o);
}

static void specific_json(struct out *o, const struct qstill_image_info *info)
{
    out_object(o, "format-specific");
    out_text(o, "type", "qcow2");
    out_object(o, "data");
    out_text(o, "compat", info->version == 2 ? "0.10" : "1.1");
    out_text(o, "compression-type", info->compression);
    out_uint(o, "refcount-bits", info->refcount_bits);
    if (info->data_file)
        out_text(o, "data-file", info->data_file);
    encrypt_json(o, info);
    if (info->version > 2) {
        if (info->external_data)
            out_bool(o, "data-file-raw", info->data_file_raw);
        out_bool(o, "lazy-refcounts", info->lazy_refcounts);
        out_bool(o, "corrupt", info->corrupt);
        out_bool(o, "extended-l2", info->extended_l2);
    }
    if (info->bitmap_count)
        bitmaps_json(o, info);
    out_end(o);
    out_end(o);
}

static void info_json(const struct qstill_image_info *info)
{
    struct out o = OUT_INIT(stdout);

    out_object(&o, NULL);
    out_text(&o, "filename", info->path);
    out_text(&o, "format", info->format);
    out_uint(&o, "virtual-size", info->virtual_size);
    out_uint(&o, "actual-size", info->actual_size);
    if (info->backing)
        out_text(&o, "backing-filename", info->backing);
    if (info->backing) /* one with a protocol is whole as it stands */
        out_text(&o, "full-backing-filename",
                 info->backing_path ? info->backing_path : info->backing);
    if (info->backing_format)
        out_text(&o, "backing-filename-format", info->backing_format);
    if (info->version) {
        out_uint(&o, "cluster-size", info->cluster_size);
        out_bool(&o, "encrypted", info->encrypted);
        if (info->snapshot_count)
            snapshots_json(&o, info);
        specific_json(&o, info);
    }
    out_bool(&o, "dirty-flag", info->dirty);
    out_end(&o);
}

static void line(const char *name, const char *value)
{
    printf("%-16s ", name);
    text_safe(stdout, value);
    putchar('\n');
}

static void line_size(const char *name, uint64_t bytes)
{
    char size[TEXT_SIZE_MAX];

    printf("%-16s %s (%llu bytes)\n", name, text_size(size, bytes),
           (unsigned long long)bytes);
}

static void info_text(const struct qstill_image_info *info)
{
    line("image", info->path);
    line("format", info->format);
    line_size("virtual size", info->virtual_size);
    line_size("on disk", info->actual_size);
    if (info->backing) {
        line("backing file", info->backing);
        line("backing format",
             info->backing_format ? info->backing_format : "not stated");
    }
    if (!info->version)
        return;
    line_size("cluster size", info->cluster_size);
    printf("%-16s version %u, %s, refcounts of %u bits%s%s%s%s%s%s\n", "qcow2",
           info->version, info->compression, info->refcount_bits,
           info->lazy_refcounts ? ", lazy" : "",
           info->extended_l2 ? ", extended L2" : "",
           info->dirty ? ", dirty" : "", info->corrupt ? ", corrupt" : "",
           info->encrypted ? ", encrypted" : "",
           info->external_data ? ", external data file" : "");
    if (info->data_file)
        line(info->data_file_raw ? "raw data file" : "data file",
             info->data_file);
    if (info->encryption)
        line("encryption", info->encryption);
    if (info->luks)
        line("cipher", info->luks->cipher_alg);
    for (size_t i = 0; i < info->snapshot_count; i++)
        line("snapshot", info->snapshots[i].name);
    for (size_t i = 0; i < info->bitmap_count; i++)
        line("bitmap", info->bitmaps[i].name);
}

static int run_info(struct cli *cli, const struct args *args,
                    struct qstill_error *err)
{
    struct qstill_image_info *info;

    if (qstill_image_info(args_operand(args, 0), args_text(args, "format"),
                          &info, err) < 0)
        return err->code;
    if (cli->json)
        info_json(info);
    else
        info_text(info);
    qstill_image_info_free(info);
    return 0;
}

const struct verb verb_image_info = {
    .name = "image info",
    .summary = "Shows what one image says about itself",
    .operands = {{"FILE", false, false}},
    .options = format_options,
    .run = run_info,
};

/* --------------------------------------------------------------------- map */

/* The array begins with the first extent: an error leaves no half of one. */
static void begin_map(struct out *o)
{
    if (o->depth == 0)
        out_array(o, NULL);
}

static int map_json(void *user, const struct qstill_image_extent *e)
{
    struct out *o = user;

    begin_map(o);
    out_object(o, NULL);
    out_uint(o, "start", e->start);
    out_uint(o, "length", e->length);
    out_uint(o, "depth", e->depth);
    out_bool(o, "present", e->present);
    out_bool(o, "zero", e->zero);
    out_bool(o, "data", e->data);
    out_bool(o, "compressed", e->compressed);
    if (e->has_offset)
        out_uint(o, "offset", e->offset);
    out_end(o);
    return 0;
}

static int map_text(void *user, const struct qstill_image_extent *e)
{
    bool *titled = user;

    if (!*titled)
        printf("%-16s %-16s %5s  %s\n", "start", "length", "layer", "what");
    *titled = true;
    printf("%#-16llx %#-16llx %5u  %s\n", (unsigned long long)e->start,
           (unsigned long long)e->length, e->depth,
           e->compressed           ? "compressed"
           : e->data && !e->zero   ? "data"
           : e->present || e->data ? "zero"
                                   : "nothing");
    return 0;
}

static int run_map(struct cli *cli, const struct args *args,
                   struct qstill_error *err)
{
    struct out o = OUT_INIT(stdout);
    bool titled = false;

    if (qstill_image_map(args_operand(args, 0), args_text(args, "format"),
                         cli->json ? map_json : map_text,
                         cli->json ? (void *)&o : (void *)&titled, err) < 0)
        return err->code;
    if (cli->json) {
        begin_map(&o);
        out_end(&o);
    }
    return 0;
}

const struct verb verb_image_map = {
    .name = "image map",
    .summary = "Shows which layer of a chain holds what",
    .operands = {{"FILE", false, false}},
    .options = format_options,
    .run = run_map,
};

/* ------------------------------------------------------------------- check */

static void check_json(const char *path, const struct qstill_image_check *c)
{
    struct out o = OUT_INIT(stdout);

    out_object(&o, NULL);
    out_text(&o, "filename", path);
    out_text(&o, "format", "qcow2");
    out_uint(&o, "check-errors", 0);
    out_uint(&o, "image-end-offset", c->image_end_offset);
    out_uint(&o, "corruptions", c->corruptions);
    out_uint(&o, "leaks", c->leaks);
    out_uint(&o, "total-clusters", c->total_clusters);
    out_uint(&o, "allocated-clusters", c->allocated_clusters);
    out_uint(&o, "fragmented-clusters", c->fragmented_clusters);
    out_uint(&o, "compressed-clusters", c->compressed_clusters);
    out_array(&o, "messages");
    for (size_t i = 0; i < c->message_count; i++)
        out_text(&o, NULL, c->messages[i]);
    out_end(&o);
    out_end(&o);
}

static void check_text(const struct qstill_image_check *c)
{
    for (size_t i = 0; i < c->message_count; i++) {
        text_safe(stdout, c->messages[i]);
        putchar('\n');
    }
    if (c->corruptions || c->leaks)
        printf("%llu corruptions, %llu leaked clusters\n",
               (unsigned long long)c->corruptions,
               (unsigned long long)c->leaks);
    else
        printf("no damage: %llu of %llu clusters allocated\n",
               (unsigned long long)c->allocated_clusters,
               (unsigned long long)c->total_clusters);
}

static int run_check(struct cli *cli, const struct args *args,
                     struct qstill_error *err)
{
    struct qstill_image_check *check;

    if (qstill_image_check(args_operand(args, 0), args_text(args, "format"),
                           &check, err) < 0)
        return err->code;
    if (cli->json)
        check_json(args_operand(args, 0), check);
    else
        check_text(check);
    if (check->corruptions || check->leaks)
        cli->status = -QSTILL_E_CORRUPT;
    qstill_image_check_free(check);
    return 0;
}

const struct verb verb_image_check = {
    .name = "image check",
    .summary =
        "Counts an image's references and compares them with what it stores",
    .operands = {{"FILE", false, false}},
    .options = format_options,
    .run = run_check,
};
