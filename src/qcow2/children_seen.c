/* SPDX-License-Identifier: MIT */
#include "children_seen.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/sum.h"

#define SETTLED_S 2

/* Open addressing by path; 0 is free, else an index plus one. */
struct children_seen {
    struct seen_file *v;
    size_t n, cap;
    uint32_t *slots;
    size_t slot_count; /* a power of two */
};

struct children_seen *children_seen_new(void)
{
    return calloc(1, sizeof(struct children_seen));
}

void seen_file_fini(struct seen_file *e)
{
    free(e->path);
    stored_names_fini(&e->names);
    *e = (struct seen_file){0};
}

void children_seen_free(struct children_seen *seen)
{
    if (!seen)
        return;
    for (size_t i = 0; i < seen->n; i++)
        seen_file_fini(&seen->v[i]);
    free(seen->v);
    free(seen->slots);
    free(seen);
}

static size_t slot_of(const struct children_seen *seen, const char *path)
{
    size_t at = (size_t)sum_bytes(path, strlen(path), 0);

    for (at &= seen->slot_count - 1; seen->slots[at] != 0;
         at = (at + 1) & (seen->slot_count - 1))
        if (strcmp(seen->v[seen->slots[at] - 1].path, path) == 0)
            break;
    return at;
}

struct seen_file *seen_find(const struct children_seen *seen, const char *path)
{
    size_t at;

    if (!seen || seen->slot_count == 0)
        return NULL;
    at = slot_of(seen, path);
    return seen->slots[at] ? &seen->v[seen->slots[at] - 1] : NULL;
}

/* A change within the clock's tick of another does not show in its time. */
bool seen_is_settled(const struct stat *st)
{
    return time(NULL) - st->st_ctim.tv_sec > SETTLED_S;
}

bool seen_is_as_it_was(const struct seen_file *e, int dirfd, const char *name)
{
    struct stat st;

    return e->settled && fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           st.st_dev == e->st.st_dev && st.st_ino == e->st.st_ino &&
           st.st_size == e->st.st_size &&
           st.st_mtim.tv_sec == e->st.st_mtim.tv_sec &&
           st.st_mtim.tv_nsec == e->st.st_mtim.tv_nsec &&
           st.st_ctim.tv_sec == e->st.st_ctim.tv_sec &&
           st.st_ctim.tv_nsec == e->st.st_ctim.tv_nsec;
}

static bool seen_grow(struct children_seen *seen)
{
    size_t cap = seen->cap ? 2 * seen->cap : 256;
    struct seen_file *v;
    uint32_t *slots;

    if (seen->n < seen->cap)
        return true;
    v = realloc(seen->v, cap * sizeof(*v));
    if (v)
        seen->v = v;
    slots = calloc(2 * cap, sizeof(*slots));
    if (!v || !slots) {
        free(slots);
        return false;
    }
    free(seen->slots);
    seen->slots = slots;
    seen->slot_count = 2 * cap;
    seen->cap = cap;
    for (size_t i = 0; i < seen->n; i++)
        slots[slot_of(seen, seen->v[i].path)] = (uint32_t)i + 1;
    return true;
}

int seen_put(struct children_seen *seen, struct seen_file *e,
             struct qstill_error *err)
{
    struct seen_file *old = seen_find(seen, e->path);

    if (old) {
        seen_file_fini(old);
        *old = *e;
    } else if (seen_grow(seen)) {
        seen->v[seen->n] = *e;
        seen->slots[slot_of(seen, e->path)] = (uint32_t)++seen->n;
    } else {
        return err_nomem(err);
    }
    *e = (struct seen_file){0};
    return 0;
}
