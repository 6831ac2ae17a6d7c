/* SPDX-License-Identifier: MIT */
#include "luks.h"

#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"

/* On the disk. Texts end with a zero byte. */
enum {
    AT_VERSION = 6,
    AT_CIPHER = 8,
    AT_MODE = 40,
    AT_HASH = 72,
    AT_PAYLOAD = 104, /* in sectors */
    AT_KEY_BYTES = 108,
    AT_ITERS = 164,
    AT_UUID = 168,
    AT_SLOTS = 208,
    TEXT = 32,

    SLOT = 48,
    SLOT_ACTIVE = 0,
    SLOT_ITERS = 4,
    SLOT_KEY = 40, /* in sectors */
    SLOT_STRIPES = 44,
};

#define SECTOR        512u
#define SLOTS_BEGIN   (4096u / SECTOR) /* keys come behind */
#define STRIPES       4000u            /* nobody writes others */
#define SLOT_ENABLED  0x00ac71f3u
#define SLOT_DISABLED 0x0000deadu

static const char magic[6] = {'L', 'U', 'K', 'S', '\xba', '\xbe'};

static const struct cipher {
    const char *name;
    uint32_t key_bytes;
    const char *full;
} ciphers[] = {
    {"aes", 16, "aes-128"},
    {"aes", 24, "aes-192"},
    {"aes", 32, "aes-256"},
    {"cast5", 16, "cast5-128"},
    {"serpent", 16, "serpent-128"},
    {"serpent", 24, "serpent-192"},
    {"serpent", 32, "serpent-256"},
    {"twofish", 16, "twofish-128"},
    {"twofish", 24, "twofish-192"},
    {"twofish", 32, "twofish-256"},
    {"sm4", 16, "sm4"},
};

static const char *const modes[] = {"ecb", "cbc", "xts", "ctr", NULL};
static const char *const ivgens[] = {"plain", "plain64", "essiv", NULL};
static const char *const hashes[] = {"md5",       "sha1",   "sha224",
                                     "sha256",    "sha384", "sha512",
                                     "ripemd160", "sm3",    NULL};

static int bad(struct qstill_error *err, const char *what)
{
    return err_set(err, QSTILL_E_CORRUPT, "LUKS header: %s", what);
}

static int not_known(struct qstill_error *err, const char *what)
{
    return err_set(err, QSTILL_E_PRECONDITION,
                   "LUKS header: the %s is not known here", what);
}

static const char *one_of(const char *const *known, const char *name)
{
    while (*known && strcmp(*known, name) != 0)
        known++;
    return *known;
}

static int get_text(const uint8_t *p, char out[TEXT], struct qstill_error *err)
{
    if (!memchr(p, 0, TEXT))
        return bad(err, "a name in it has no end");
    memcpy(out, p, TEXT);
    return 0;
}

/* MODE-IVGEN[:HASH] */
static int parse_mode(const uint8_t *raw, struct luks *l,
                      struct qstill_error *err)
{
    char text[TEXT], *ivgen, *hash;

    if (get_text(raw + AT_MODE, text, err) < 0)
        return err->code;
    ivgen = strchr(text, '-');
    if (!ivgen)
        return bad(err, "the cipher's mode is not possible");
    *ivgen++ = '\0';
    hash = strchr(ivgen, ':');
    if (hash)
        *hash++ = '\0';
    l->mode = one_of(modes, text);
    l->ivgen = one_of(ivgens, ivgen);
    l->ivgen_hash = hash ? one_of(hashes, hash) : NULL;
    if (!l->mode || !l->ivgen || (hash && !l->ivgen_hash))
        return not_known(err, "cipher's mode");
    if (strcmp(l->ivgen, "essiv") != 0)
        l->ivgen_hash = NULL; /* it has no use for it */
    else if (!l->ivgen_hash)
        return bad(err, "essiv without a hash");
    return 0;
}

/* The mode is known. */
static int parse_cipher(const uint8_t *raw, struct luks *l,
                        struct qstill_error *err)
{
    uint32_t bytes = get_be32(raw + AT_KEY_BYTES);
    char name[TEXT];

    if (get_text(raw + AT_CIPHER, name, err) < 0)
        return err->code;
    if (strcmp(l->mode, "xts") == 0) { /* two keys */
        if (bytes % 2)
            return bad(err, "an odd length of two keys");
        bytes /= 2;
    }
    for (size_t i = 0; i < ARRAY_LEN(ciphers) && !l->cipher; i++)
        if (ciphers[i].key_bytes == bytes && strcmp(ciphers[i].name, name) == 0)
            l->cipher = ciphers[i].full;
    return l->cipher ? 0 : not_known(err, "cipher");
}

static int parse_hash(const uint8_t *raw, struct luks *l,
                      struct qstill_error *err)
{
    char name[TEXT];

    if (get_text(raw + AT_HASH, name, err) < 0)
        return err->code;
    l->hash = one_of(hashes, name);
    return l->hash ? 0 : not_known(err, "hash");
}

/* Sectors of the key in a slot, spread over its stripes; slots are as coarse as
 * the header's place. */
static uint64_t key_sectors(const uint8_t *raw)
{
    uint64_t bytes = (uint64_t)get_be32(raw + AT_KEY_BYTES) * STRIPES;

    return round_up_u64(bytes, (uint64_t)SLOTS_BEGIN * SECTOR) / SECTOR;
}

static int parse_slot(const uint8_t *raw, const uint8_t *p,
                      struct luks_slot *slot, struct qstill_error *err)
{
    uint32_t active = get_be32(p + SLOT_ACTIVE);
    uint64_t begin = get_be32(p + SLOT_KEY);

    if (active != SLOT_ENABLED && active != SLOT_DISABLED)
        return bad(err, "a key slot is neither in use nor free");
    *slot = (struct luks_slot){.active = active == SLOT_ENABLED,
                               .iters = get_be32(p + SLOT_ITERS),
                               .stripes = get_be32(p + SLOT_STRIPES),
                               .key_offset = begin * SECTOR};
    if (slot->stripes != STRIPES)
        return bad(err, "a key slot's stripes are not possible");
    if (slot->active && slot->iters == 0)
        return bad(err, "a key slot without iterations");
    if (begin < SLOTS_BEGIN ||
        begin + key_sectors(raw) > get_be32(raw + AT_PAYLOAD))
        return bad(err, "a key slot's place is not possible");
    return 0;
}

static int parse_slots(const uint8_t *raw, struct luks *l,
                       struct qstill_error *err)
{
    uint64_t len = key_sectors(raw) * SECTOR;

    for (size_t i = 0; i < LUKS_SLOTS; i++) {
        if (parse_slot(raw, raw + AT_SLOTS + i * SLOT, &l->slots[i], err) < 0)
            return err->code;
        for (size_t k = 0; k < i; k++)
            if (l->slots[i].key_offset < l->slots[k].key_offset + len &&
                l->slots[k].key_offset < l->slots[i].key_offset + len)
                return bad(err, "key slots lie over each other");
    }
    return 0;
}

int luks_parse(const uint8_t raw[LUKS_HEADER], struct luks *out,
               struct qstill_error *err)
{
    struct luks l = {0};

    if (memcmp(raw, magic, sizeof(magic)) != 0)
        return bad(err, "it is none");
    if (get_be16(raw + AT_VERSION) != 1)
        return not_known(err, "version");
    l.payload_offset = (uint64_t)get_be32(raw + AT_PAYLOAD) * SECTOR;
    l.master_key_iters = get_be32(raw + AT_ITERS);
    if (l.payload_offset < (uint64_t)SLOTS_BEGIN * SECTOR)
        return bad(err, "the data lies over it");
    if (l.master_key_iters == 0)
        return bad(err, "a key without iterations");
    memcpy(l.uuid, raw + AT_UUID, LUKS_UUID_SIZE);
    if (parse_mode(raw, &l, err) < 0 || parse_cipher(raw, &l, err) < 0 ||
        parse_hash(raw, &l, err) < 0 || parse_slots(raw, &l, err) < 0)
        return err->code;
    *out = l;
    return 0;
}

/* The extension's content, which header.c has found to be 16 bytes; or NULL. */
static const uint8_t *find_extension(const struct qcow2_header *h)
{
    const struct buf *other = &h->other;

    for (size_t at = 0; at + 8 <= other->len;) {
        if (get_be32(other->data + at) == QCOW2_EXT_CRYPTO)
            return other->data + at + 8;
        at += 8 + round_up_u64(get_be32(other->data + at + 4), 8);
    }
    return NULL;
}

int luks_read(const struct image *img, bool *found, struct luks *out,
              struct qstill_error *err)
{
    const uint8_t *extension = find_extension(&img->info.header);
    uint8_t raw[LUKS_HEADER];
    uint64_t offset;

    *found = extension != NULL;
    if (!extension)
        return 0;
    offset = get_be64(extension);
    if (offset % img->cluster_size != 0 || offset > INT64_MAX - sizeof(raw) ||
        get_be64(extension + 8) < sizeof(raw))
        return bad(err, "the place of it is not possible");
    if (io_read_full(img->io, img->fd, raw, sizeof(raw), offset, err) < 0)
        return err_wrap(err, "%s: LUKS header", img->path);
    return luks_parse(raw, out, err) < 0 ? err_wrap(err, "%s", img->path) : 0;
}
