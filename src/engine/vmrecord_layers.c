/* SPDX-License-Identifier: MIT */
/* The layers of vm.json that no snapshot names: hidden ones, and the trash. */
#include <string.h>

#include "vmrecord.h"

/* NULL stays NULL. */
static bool copy(struct vm_record *rec, const char **dst, const char *src)
{
    *dst = src ? arena_strdup(&rec->arena, src) : NULL;
    return *dst || !src;
}

int vmrecord_copy_layer(struct vm_record *rec, const struct vm_hidden *from,
                        struct vm_hidden *to, struct qstill_error *err)
{
    *to = *from;
    if (!copy(rec, &to->disk, from->disk) ||
        !copy(rec, &to->path, from->path) ||
        !copy(rec, &to->format, from->format) ||
        !copy(rec, &to->header_hash, from->header_hash))
        return err_nomem(err);
    return 0;
}

/* The arena gives nothing back: an array of thousands is not copied for each
 * one more. */
static int grow_hidden(struct vm_record *rec, struct qstill_error *err)
{
    size_t cap = rec->hidden_count < 16 ? 16 : 2 * rec->hidden_count;
    struct vm_hidden *more;

    if (rec->hidden_count < rec->hidden_cap)
        return 0;
    more = arena_array(&rec->arena, cap, sizeof(*more));
    if (!more)
        return err_nomem(err);
    if (rec->hidden_count > 0)
        memcpy(more, rec->hidden, rec->hidden_count * sizeof(*more));
    rec->hidden = more;
    rec->hidden_cap = cap;
    return 0;
}

int vmrecord_hide_as(struct vm_record *rec, const struct vm_hidden *layer,
                     struct qstill_error *err)
{
    for (size_t i = 0; i < rec->hidden_count; i++)
        if (strcmp(rec->hidden[i].path, layer->path) == 0)
            return 0;
    if (rec->hidden_count >= VM_HIDDEN_MAX)
        return err_set(err, QSTILL_E_FAILED, "over %d hidden layers",
                       VM_HIDDEN_MAX);
    if (grow_hidden(rec, err) < 0 ||
        vmrecord_copy_layer(rec, layer, &rec->hidden[rec->hidden_count], err) <
            0)
        return err->code;
    rec->hidden_count++;
    return 0;
}

int vmrecord_hide(struct vm_record *rec, const char *disk, const char *path,
                  const char *format, struct qstill_error *err)
{
    struct vm_hidden layer = {.disk = disk, .path = path, .format = format};

    return vmrecord_hide_as(rec, &layer, err);
}

int vmrecord_add_trash(struct vm_record *rec, const struct vm_trash *trash,
                       struct qstill_error *err)
{
    struct vm_trash *more;

    if (rec->trash_count >= VM_TRASH_MAX)
        return err_set(err, QSTILL_E_FAILED, "the trash of VM %s is full",
                       rec->name);
    more = arena_array(&rec->arena, rec->trash_count + 1, sizeof(*more));
    if (!more)
        return err_nomem(err);
    if (rec->trash_count > 0)
        memcpy(more, rec->trash, rec->trash_count * sizeof(*more));
    more[rec->trash_count++] = *trash;
    rec->trash = more;
    return 0;
}

void vmrecord_drop_trash(struct vm_record *rec, const struct vm_trash *trash)
{
    size_t at = (size_t)(trash - rec->trash);

    rec->trash_count--;
    memmove(&rec->trash[at], &rec->trash[at + 1],
            (rec->trash_count - at) * sizeof(*rec->trash));
}

void vmrecord_keep(struct vm_record *rec, const char *path)
{
    for (size_t i = 0; i < rec->hidden_count; i++)
        if (strcmp(rec->hidden[i].path, path) == 0)
            rec->hidden[i].keep = true;
}

void vmrecord_unhide(struct vm_record *rec, const char *path)
{
    for (size_t i = 0; i < rec->hidden_count; i++)
        if (strcmp(rec->hidden[i].path, path) == 0) {
            rec->hidden[i] = rec->hidden[--rec->hidden_count];
            return;
        }
}
