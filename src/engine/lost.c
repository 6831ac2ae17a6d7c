/* SPDX-License-Identifier: MIT */
#include "lost.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "json.h"
#include "layer_file.h"
#include "layer_name.h"
#include "layers.h"
#include "name.h"
#include "qcow2/info.h"
#include "session.h"

/* More than a disk can have; then it is a loop. */
#define CHAIN_MAX 4096

/* ------------------------------------------------------------- whose is it? */

static bool is_called(const char *like, const char *name)
{
    const char *slash = strrchr(like, '/');

    return slash && strcmp(slash, name) == 0;
}

/* "disk0.k3pq7mzt2abc.qcow2" of the first image "disk0.img"; "disk0-2." when
 * another disk's in the same folder would be called so, too (layer_name.h). */
static bool is_named_so(struct session *s, const struct vm_disk *d,
                        const char *path)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    const char *slash = strrchr(path, '/'), *like, *dir;
    struct qstill_error ignored = {0};
    char tag[ID_LEN + 1];
    size_t len = slash ? strlen(slash) : 0;

    if (len < ID_LEN + 8) /* "/" "." ".qcow2" */
        return false;
    memcpy(tag, slash + len - 6 - ID_LEN, ID_LEN);
    tag[ID_LEN] = '\0';
    if (strspn(tag, letters) != ID_LEN)
        return false;
    dir = arena_printf(&s->rec.arena, "%.*s", (int)(slash - path) + 1, path);
    return dir && ((layer_new_path(s, d, dir, tag, &like, &ignored) == 0 &&
                    is_called(like, slash)) ||
                   (layer_path_in(s, d, dir, tag, &like, &ignored) == 0 &&
                    is_called(like, slash)));
}

static bool in_trash(const struct session *s, const char *path)
{
    for (size_t i = 0; i < s->rec.trash_count; i++)
        for (size_t k = 0; k < s->rec.trash[i].layer_count; k++)
            if (strcmp(s->rec.trash[i].layers[k].path, path) == 0)
                return true;
    return false;
}

/* What lies between known layers is known, and nobody's all the same. */
static bool is_needed(const struct session *s, const struct layers *all,
                      const char *path)
{
    const struct layer *l = layers_find(all, path);

    return l && (l->owner || l->head || l->hidden || in_trash(s, l->path));
}

/* The absolute path of a qcow2 file's backing; NULL when there is none. */
static char *backing_of(struct session *s, const char *path)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    struct qstill_error ignored = {0};
    const char *slash = strrchr(path, '/');
    struct stat st;

    if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode) ||
        layer_info(path, "qcow2", &info, &ignored) < 0 ||
        !info.header.has_backing)
        return NULL;
    if (info.header.backing[0] == '/')
        return arena_strdup(&s->rec.arena, info.header.backing);
    return arena_printf(&s->rec.arena, "%.*s/%s", (int)(slash - path), path,
                        info.header.backing);
}

static bool is_first(struct session *s, const struct vm_disk *d,
                     const char *path)
{
    const char *first = session_first_image(&s->rec, d);

    /* QEMU's name may lead there by a link or ".." */
    return first && session_same_file(first, path);
}

/* An overlay of the disk's first image or of a layer that somebody needs, or of
 * such overlays. */
static bool leads_to(struct session *s, const struct layers *all,
                     const struct vm_disk *d, const char *path)
{
    for (size_t n = 0; path && n < CHAIN_MAX; n++) {
        const struct layer *l = layers_find(all, path);

        if (n > 0 && is_first(s, d, path))
            return true;
        if (n > 0 && is_needed(s, all, path))
            return strcmp(l->disk, d->name) == 0;
        path = backing_of(s, path);
    }
    return false;
}

bool lost_is_ours(struct session *s, const struct layers *all, const char *disk,
                  const char *path)
{
    const struct vm_disk *d = vmrecord_disk(&s->rec, disk);

    return d && is_named_so(s, d, path) && leads_to(s, all, d, path);
}

/* The disk whose lost layer it is, or NULL. */
static const struct vm_disk *lost_of(struct session *s,
                                     const struct layers *all, const char *path)
{
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];

        if (is_named_so(s, d, path) && !is_needed(s, all, path) &&
            leads_to(s, all, d, path))
            return d;
    }
    return NULL;
}

/* The disk whose first image it is, which no snapshot names any more. */
static const struct vm_disk *
first_of(struct session *s, const struct layers *all, const char *path)
{
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];

        if (is_first(s, d, path) && !is_needed(s, all, path))
            return d;
    }
    return NULL;
}

/* --------------------------------------------------------------------- hide */

static int hide_one(struct session *s, const struct layers *all,
                    const char *path, struct qstill_error *err)
{
    const struct vm_disk *d = lost_of(s, all, path);

    if (d)
        return vmrecord_hide(&s->rec, d->name, path, "qcow2", err);
    d = first_of(s, all, path);
    return d ? vmrecord_hide(&s->rec, d->name, path, d->attach_format, err) : 0;
}

/* Each "path": "..." of a text that need not be JSON any more. */
static int each_path(struct session *s, const struct layers *all,
                     const char *text, struct qstill_error *err)
{
    static const char key[] = "\"path\":";

    while ((text = strstr(text, key)) != NULL) {
        const char *end;
        char *path;

        text += sizeof(key) - 1;
        text += strspn(text, " \t\n");
        end = *text == '"' ? strpbrk(text + 1, "\"\\\n") : NULL;
        if (!end || *end != '"' || text[1] != '/')
            continue;
        path = arena_printf(&s->rec.arena, "%.*s", (int)(end - text - 1),
                            text + 1);
        if (!path)
            return err_nomem(err);
        if (hide_one(s, all, path, err) < 0)
            return err->code;
        text = end;
    }
    return 0;
}

int lost_hide(struct session *s, int snapfd, struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};
    CLEANUP(buf_fini) struct buf text = BUF_INIT;
    struct qstill_error ignored = {0};

    if (file_slurpat(snapfd, STORE_MANIFEST, JSON_FILE_MAX, &text, &ignored) <
            0 ||
        text.len == 0)
        return 0;
    if (layers_load(s, &all, err) < 0)
        return err->code;
    if (buf_append(&text, "", 1) < 0)
        return err_nomem(err);
    return each_path(s, &all, (const char *)text.data, err);
}

/* --------------------------------------------------------------------- tell */

static void tell(struct session *s, const struct layers *all, const char *path)
{
    const struct vm_disk *d = lost_of(s, all, path);
    const struct layer *l = layers_find(all, path);

    if (!d)
        return;
    if (l) /* it is read by what is needed */
        store_note(s->store,
                   "%s is of no snapshot any more and stays, for others of "
                   "disk %s stand on it",
                   path, d->name);
    else
        store_note(s->store,
                   "%s stays: it may have been of a damaged snapshot of disk "
                   "%s, and nothing of this VM needs it; if nobody else does: "
                   "chattr -i FILE; rm FILE",
                   path, d->name);
}

static void tell_dir(struct session *s, const struct layers *all,
                     const char *dir)
{
    DIR *list = opendir(*dir ? dir : "/");
    struct dirent *e;

    while (list && (e = readdir(list)) != NULL) {
        const char *path = arena_printf(&s->rec.arena, "%s/%s", dir, e->d_name);

        if (path)
            tell(s, all, path);
    }
    if (list)
        closedir(list);
}

int lost_tell(struct session *s, struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};
    CLEANUP(buf_fini) struct buf seen = BUF_INIT; /* "DIR\n" ... */

    if (layers_load(s, &all, err) < 0)
        return err->code;
    for (size_t i = 0; i < all.count; i++) {
        const char *path = all.items[i].path, *slash = strrchr(path, '/');
        char *dir = slash ? arena_printf(&s->rec.arena, "%.*s",
                                         (int)(slash - path), path)
                          : NULL;
        char *line = dir ? arena_printf(&s->rec.arena, "\n%s\n", dir) : NULL;

        if (!line || (seen.len && strstr((const char *)seen.data, line)))
            continue;
        if (buf_puts(&seen, line) < 0)
            return err_nomem(err);
        tell_dir(s, &all, dir);
    }
    return 0;
}
