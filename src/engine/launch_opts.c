/* SPDX-License-Identifier: MIT */
/*
 * The keyval form of QEMU's options ("a=1,b.c=2", a comma in a value written
 * twice), and the operations on pairs that serve the JSON form too.
 */
#include "launch_opts.h"

#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"

static void pair_fini(struct opts_pair *p)
{
    free(p->key);
    free(p->value);
}

void opts_fini(struct opts *o)
{
    size_t i;

    for (i = 0; i < o->count; i++)
        pair_fini(&o->pairs[i]);
    free(o->pairs);
    free(o->implied);
    memset(o, 0, sizeof(*o));
}

int opts_append(struct opts *o, const char *key, const char *value,
                enum opts_kind kind, struct qstill_error *err)
{
    struct opts_pair pair = {NULL, NULL, kind};

    if (o->count >= OPTS_PAIRS_MAX || (key && strlen(key) >= OPTS_KEY_MAX))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "an option has too many or too long keys");
    if (o->count == o->cap) {
        size_t cap = o->cap ? o->cap * 2 : 16;
        struct opts_pair *p = realloc(o->pairs, cap * sizeof(*p));

        if (!p)
            return err_nomem(err);
        o->pairs = p;
        o->cap = cap;
    }
    if ((key && !(pair.key = strdup(key))) || !(pair.value = strdup(value))) {
        pair_fini(&pair);
        return err_nomem(err);
    }
    o->pairs[o->count++] = pair;
    return 0;
}

/* Copies a value up to its comma, ",," standing for one; returns what comes
 * behind the comma, or the end. */
static const char *value_copy(const char *s, char *to)
{
    while (*s) {
        if (*s == ',' && *++s != ',') {
            *to = '\0';
            return s;
        }
        *to++ = *s++;
    }
    *to = '\0';
    return s;
}

static int parse_keyval(struct opts *o, const char *text,
                        struct qstill_error *err)
{
    CLEANUP(freep) char *word = malloc(strlen(text) + 1);
    const char *s = text;
    bool first = true;

    if (!word)
        return err_nomem(err);
    for (; *s; first = false) {
        size_t n = strcspn(s, "=,");

        if (s[n] == '=') {
            CLEANUP(freep) char *key = strndup(s, n);

            if (!key)
                return err_nomem(err);
            s = value_copy(s + n + 1, word);
            if (opts_append(o, key, word, OPTS_STRING, err) < 0)
                return err->code;
        } else if (first && o->implied) {
            s = value_copy(s, word);
            if (opts_append(o, NULL, word, OPTS_BARE, err) < 0)
                return err->code;
        } else {
            memcpy(word, s, n);
            word[n] = '\0';
            s += n + (s[n] == ',');
            if (opts_append(o, word, "on", OPTS_BARE, err) < 0)
                return err->code;
        }
    }
    return 0;
}

int opts_parse(struct opts *out, const char *text, const char *implied,
               struct qstill_error *err)
{
    CLEANUP(opts_fini) struct opts o = {0};
    int rc;

    if (strlen(text) > OPTS_TEXT_MAX)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "an option of the command line is longer than %d bytes",
                       OPTS_TEXT_MAX);
    if (implied && !(o.implied = strdup(implied)))
        return err_nomem(err);
    o.json = text[0] == '{';
    rc = o.json ? opts_parse_json(&o, text, err) : parse_keyval(&o, text, err);
    if (rc < 0)
        return rc;
    *out = o;
    memset(&o, 0, sizeof(o));
    return 0;
}

static int put_value(struct buf *b, const char *value)
{
    for (; *value; value++) {
        if (buf_append_u8(b, (uint8_t)*value) < 0 ||
            (*value == ',' && buf_append_u8(b, ',') < 0))
            return -1;
    }
    return 0;
}

static int put_pair(struct buf *b, const struct opts_pair *p)
{
    if (!p->key)
        return put_value(b, p->value);
    if (buf_puts(b, p->key) < 0)
        return -1;
    if (p->kind == OPTS_BARE)
        return 0;
    return buf_puts(b, "=") < 0 ? -1 : put_value(b, p->value);
}

int opts_emit(const struct opts *o, char **out, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    size_t i;

    if (o->json)
        return opts_emit_json(o, out, err);
    for (i = 0; i < o->count; i++)
        if ((i && buf_puts(&b, ",") < 0) || put_pair(&b, &o->pairs[i]) < 0)
            return err_nomem(err);
    *out = buf_take_string(&b);
    return *out ? 0 : err_nomem(err);
}

static const char *pair_key(const struct opts *o, const struct opts_pair *p)
{
    return p->key ? p->key : o->implied;
}

/* The key itself, or a key below it. */
static bool covers(const char *key, const char *k)
{
    size_t n = strlen(key);

    return strncmp(k, key, n) == 0 && (k[n] == '\0' || k[n] == '.');
}

const char *opts_get(const struct opts *o, const char *key)
{
    size_t i;

    for (i = o->count; i-- > 0;)
        if (strcmp(pair_key(o, &o->pairs[i]), key) == 0)
            return o->pairs[i].value;
    return NULL;
}

bool opts_has(const struct opts *o, const char *key)
{
    size_t i;

    for (i = 0; i < o->count; i++)
        if (covers(key, pair_key(o, &o->pairs[i])))
            return true;
    return false;
}

bool opts_key_is(const char *key, const char *word)
{
    const char *dot = key ? strrchr(key, '.') : NULL;

    return key && strcmp(dot ? dot + 1 : key, word) == 0;
}

void opts_del(struct opts *o, const char *key)
{
    size_t i, kept = 0;

    for (i = 0; i < o->count; i++) {
        if (covers(key, pair_key(o, &o->pairs[i])))
            pair_fini(&o->pairs[i]);
        else
            o->pairs[kept++] = o->pairs[i];
    }
    o->count = kept;
}

/* Replaces the last pair of the key where it stands: it is the one that
 * counts, and an implied first word must stay first. */
static int set_kind(struct opts *o, const char *key, const char *value,
                    enum opts_kind kind, struct qstill_error *err)
{
    size_t i;

    for (i = o->count; i-- > 0;) {
        struct opts_pair *p = &o->pairs[i];
        char *copy;

        if (strcmp(pair_key(o, p), key) != 0)
            continue;
        if (!(copy = strdup(value)))
            return err_nomem(err);
        free(p->value);
        p->value = copy;
        p->kind = p->key ? kind : OPTS_BARE;
        return 0;
    }
    return opts_append(o, key, value, kind, err);
}

int opts_set(struct opts *o, const char *key, const char *value,
             struct qstill_error *err)
{
    return set_kind(o, key, value, OPTS_STRING, err);
}

int opts_set_size(struct opts *o, const char *key, uint64_t value,
                  struct qstill_error *err)
{
    char text[24];

    snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    return set_kind(o, key, text, o->json ? OPTS_LITERAL : OPTS_STRING, err);
}

int opts_set_bool(struct opts *o, const char *key, bool value,
                  struct qstill_error *err)
{
    if (o->json)
        return set_kind(o, key, value ? "true" : "false", OPTS_LITERAL, err);
    return set_kind(o, key, value ? "on" : "off", OPTS_STRING, err);
}
