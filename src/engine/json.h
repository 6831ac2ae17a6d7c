/* SPDX-License-Identifier: MIT */
/*
 * Reading of our JSON files, and writing them with jansson. Readers keep the
 * first error and turn all later calls into no-ops, so a struct is read by a
 * plain list of calls and checked once.
 */
#ifndef QSTILL_ENGINE_JSON_H
#define QSTILL_ENGINE_JSON_H

#include <jansson.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/error.h"
#include "base/json_parse.h"

/* 16 MiB: a manifest with 16 disks, 64 RAM blocks and an argv of 2 MiB (the
 * kernel's own limit for one) stays far below. */
#define JSON_FILE_MAX (16u << 20)

enum json_need {
    JSON_OPTIONAL, /* null is as good as nothing */
    JSON_PRESENT,  /* there, but perhaps null */
    JSON_REQUIRED
};

struct json_in {
    const char *file;         /* named in messages */
    struct arena *arena;      /* where strings go */
    struct qstill_error *err; /* code 0 until the first error */
};

/* A file that was read; its values live as long as it does. */
struct json_file {
    struct buf text;
    struct arena arena;
    const struct json_value *root;
};
#define JSON_FILE_INIT                                                         \
    {                                                                          \
        BUF_INIT, ARENA_INIT, NULL                                             \
    }
void json_file_fini(struct json_file *f);

/* Parses dirfd/name; the top must be an object whose "version" is `version`.
 * Unknown versions are PRECONDITION, damage is CORRUPT. `f` must be
 * initialised, and fini()ed whatever comes back. */
int json_file_read(int dirfd, const char *name, int version,
                   struct json_file *f, struct qstill_error *err);
/* Publishes `root` durably as dirfd/name, unless just that stands there; where
 * there is no room for it, with the spare room (spare.h) of the VM's directory
 * sparefd, unless that is -1. */
int json_file_write(int dirfd, const char *name, const json_t *root,
                    int sparefd, struct qstill_error *err);

/* The same with a last member "sum" of what stands in front of it. One that
 * does not match in the file that is replaced is not made good by that: the new
 * one does not match either. */
int json_file_write_summed(int dirfd, const char *name, const json_t *root,
                           int sparefd, struct qstill_error *err);
/* CORRUPT when dirfd/name has a sum which does not match. */
int json_file_check_sum(int dirfd, const char *name, struct qstill_error *err);

/* A string; NULL when it may be missing or null, and is. */
const char *json_in_string(struct json_in *in, const struct json_value *obj,
                           const char *key, enum json_need need);
/* A string that is an absolute path without a ".." in it. */
const char *json_in_path(struct json_in *in, const struct json_value *obj,
                         const char *key, enum json_need need);
uint64_t json_in_u64(struct json_in *in, const struct json_value *obj,
                     const char *key, enum json_need need);
double json_in_real(struct json_in *in, const struct json_value *obj,
                    const char *key, enum json_need need);
bool json_in_bool(struct json_in *in, const struct json_value *obj,
                  const char *key, enum json_need need);
/* An object member; NULL when missing or null. */
const struct json_value *json_in_object(struct json_in *in,
                                        const struct json_value *obj,
                                        const char *key, enum json_need need);
/* Length of an array member (0 when missing), at most `max`, and its first
 * item, which leads to the others. */
size_t json_in_array(struct json_in *in, const struct json_value *obj,
                     const char *key, size_t max, enum json_need need,
                     const struct json_value **first);
/* A NULL-terminated array of strings in the arena. */
char **json_in_strings(struct json_in *in, const struct json_value *obj,
                       const char *key, size_t max, enum json_need need,
                       size_t *count);
/* After all others: a member, at any depth, that nobody asked for is damage. */
void json_in_strict(struct json_in *in, const struct json_value *v);
/* Says that "key" of the file is `what`, which is damage. */
void json_in_bad(struct json_in *in, const char *key, const char *what);

/* json_string that keeps any bytes: invalid UTF-8 (paths may hold it) is
 * written as \u0080..\u00ff per byte behind a marker U+F8FF, and read back by
 * json_in_string. NULL gives JSON null. */
json_t *json_out_string(const char *s);
json_t *json_out_strings(char *const *list, size_t count);

/* A NULL-terminated list as the text of a JSON array; the caller's (free), or
 * NULL when out of memory. */
char *json_text_of_strings(char *const *list);

#endif
