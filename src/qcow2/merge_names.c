/* SPDX-License-Identifier: MIT */
/*
 * Paths of a merge. Backing names stay relative where all names they replace
 * are relative: the names along the way are put together as QEMU would follow
 * them, so that a folder of images can still be moved as a whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "merge_impl.h"
#include "removable.h"

int path_absolute(const char *path, char **out, struct qstill_error *err)
{
    CLEANUP(freep) char *cwd = NULL;
    char *r = NULL;

    if (path[0] == '/') {
        r = strdup(path);
    } else {
        cwd = getcwd(NULL, 0);
        if (!cwd)
            return err_errno(err, errno, "cannot tell the working directory");
        if (asprintf(&r, "%s/%s", cwd, path) < 0)
            r = NULL;
    }
    if (!r)
        return err_nomem(err);
    *out = r;
    return 0;
}

char *path_dir(const char *path)
{
    const char *slash = strrchr(path, '/');

    return strndup(path, slash ? (size_t)(slash - path) + 1 : 0);
}

const char *path_base(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static bool is_taken_for_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

char *path_backing_name(const char *path)
{
    const char *base = path_base(path);
    char *r;

    return asprintf(&r, "%s%s", is_taken_for_protocol(base) ? "./" : "", base) <
                   0
               ? NULL
               : r;
}

bool path_same_dir(const char *a, const char *b)
{
    const char *x = strrchr(a, '/'), *y = strrchr(b, '/');
    size_t n = x ? (size_t)(x - a) + 1 : 0, m = y ? (size_t)(y - b) + 1 : 0;

    return n == m && memcmp(a, b, n) == 0;
}

static bool is_same_folder(const char *a, const char *b)
{
    CLEANUP(freep) char *x = path_dir(a);
    CLEANUP(freep) char *y = path_dir(b);
    struct merge_id id;

    return x && y &&
           merge_id_look(x[0] ? x : ".", NULL, true, &id) != MERGE_ABSENT &&
           merge_id_look(y[0] ? y : ".", &id, true, NULL) == MERGE_SAME;
}

bool path_is_same_name(const char *a, const char *b)
{
    return strcmp(path_base(a), path_base(b)) == 0 && is_same_folder(a, b);
}

int path_open_dir(const char *path, int *dirfd, const char **base,
                  struct qstill_error *err)
{
    CLEANUP(freep) char *dir = path_dir(path);
    int fd;

    if (!dir)
        return err_nomem(err);
    fd = open(dir[0] ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "cannot open the directory of %s", path);
    *dirfd = fd;
    *base = path + strlen(dir);
    return 0;
}

/* What `name`, stored in the file called `at`, is called from where `at`'s
 * name starts. */
static char *follow(const char *at, const char *name)
{
    CLEANUP(freep) char *dir = path_dir(at);
    char *r = NULL;

    if (!dir)
        return NULL;
    if (name[0] == '/')
        return strdup(name);
    return asprintf(&r, "%s%s", dir, name) < 0 ? NULL : r;
}

/* Takes "." folders out; a name with a colon keeps the first. */
static void tidy(char *path)
{
    char *from = path, *to = path;
    bool begin = true; /* of a part */

    while (*from) {
        if (begin && from[0] == '.' && from[1] == '/') {
            from += 2;
            from += strspn(from, "/"); /* or ".//a" became "/a" */
            continue;
        }
        begin = *from == '/';
        *to++ = *from++;
    }
    *to = '\0';
    if (is_taken_for_protocol(path)) {
        memmove(path + 2, path, (size_t)(to - path) + 1);
        memcpy(path, "./", 2);
    }
}

/* From the upper layer's own directory down, as its overlay's names lead. */
static int compose(const struct merge_group *g, char **out,
                   struct qstill_error *err)
{
    CLEANUP(freep) char *at = strdup("");

    for (size_t i = g->upper; i <= g->last; i++) {
        char *next =
            at ? follow(at, g->chain->layers[i]->info.header.backing) : NULL;

        free(at);
        at = next;
    }
    if (!at)
        return err_nomem(err);
    tidy(at); /* never longer: what needs "./" had it */
    *out = take_ptr(&at);
    return 0;
}

/* The name leads to the layer it was made for, from where it will stand. */
static bool leads_to(const struct merge_group *g, const struct image *below)
{
    CLEANUP(freep) char *path = NULL;
    struct qstill_error ignored = {0};
    struct stat st;

    return chain_resolve(g->result, g->backing, &path, &ignored) == 0 &&
           stat(path, &st) == 0 && st.st_dev == below->info.dev &&
           st.st_ino == below->info.ino;
}

int group_name_backing(struct merge_group *g, struct qstill_error *err)
{
    const struct chain *c = g->chain;
    const struct image *last = c->layers[g->last], *below;
    const char *kept = g->t == MERGE_NO_TARGET ? c->layers[g->upper]->path
                                               : c->layers[g->t]->path;
    size_t len;
    int r;

    if (g->last + 1 == c->n)
        return 0;
    below = c->layers[g->last + 1];
    g->backing_format = image_is_foreign(below)
                            ? g->m->foreign
                            : qcow2_format_name(below->info.format);
    /* between the header and the rename the file stands elsewhere */
    if (!path_same_dir(kept, g->result))
        r = path_absolute(below->path, &g->backing, err);
    else if (path_same_dir(c->layers[g->upper]->path, g->result))
        r = compose(g, &g->backing, err);
    else if (path_same_dir(last->path, g->result))
        r = (g->backing = strdup(last->info.header.backing)) ? 0
                                                             : err_nomem(err);
    else
        r = path_absolute(below->path, &g->backing, err);
    if (r < 0)
        return r;
    if (!leads_to(g, below)) {
        free(take_ptr(&g->backing));
        if (path_absolute(below->path, &g->backing, err) < 0)
            return err->code;
    }
    len = strlen(g->backing);
    if (len > QCOW2_MAX_BACKING_NAME)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s cannot name %s as its backing file: the name has "
                       "%zu bytes, qcow2 holds %u",
                       g->result, below->path, len, QCOW2_MAX_BACKING_NAME);
    return 0;
}

int group_look_at_names(struct merge_group *g, struct qstill_error *err)
{
    struct qstill_error ignored;

    if (!g->main || g->m->output || g->m->estimate_only)
        return 0;
    g->stuck = calloc(g->last - g->upper + 1, sizeof(bool));
    if (!g->stuck)
        return err_nomem(err);
    for (size_t i = g->upper; i <= g->last; i++)
        g->stuck[i - g->upper] =
            removable_check(g->chain->layers[i]->path, &ignored) < 0;
    return 0;
}

int group_check_names(const struct merge_group *g, size_t t,
                      struct qstill_error *err)
{
    for (size_t i = g->upper; g->stuck && i <= g->last; i++) {
        const char *path = g->chain->layers[i]->path;

        if (!g->stuck[i - g->upper] || (i == t && strcmp(path, g->result) == 0))
            continue;
        if (removable_check(path, err) < 0) /* why */
            return err->code;
    }
    return 0;
}

int group_name_result(struct merge_group *g, struct qstill_error *err)
{
    const struct chain *c = g->chain;
    const char *path = c->layers[g->upper]->path;

    if (g->m->output)
        path = g->m->output;
    else if (g->main && g->m->lower_name)
        path = c->layers[g->last]->path;
    g->result = strdup(path);
    return g->result ? 0 : err_nomem(err);
}
