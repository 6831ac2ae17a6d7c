/* SPDX-License-Identifier: MIT */
/*
 * `info qtree` is text for people: an indented tree of "bus: NAME", "dev: TYPE,
 * id "ID"" and "key = value" lines. Lines of other forms (where the guest has
 * mapped a BAR, interrupt counts) are not the device's configuration.
 */
#include "topology.h"

#include <inttypes.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/sum.h"
#include "client.h"
#include "field.h"
#include "monitor.h"

#define NAME_MAX_LEN 128
#define INDENT_MAX   128 /* 64 levels of buses */
#define DEVICES_MAX  16384

struct reader {
    struct qmp_names *out;
    bool registers; /* they count, too */
    char buses[INDENT_MAX][NAME_MAX_LEN];
    /* the device under way */
    bool any;
    size_t indent;
    char type[NAME_MAX_LEN];
    char label[2 * NAME_MAX_LEN + 64];
    char address[NAME_MAX_LEN];
    uint64_t sum;
};

static int add_line(struct qmp_names *out, char *line, struct qstill_error *err)
{
    char **items;

    if (!line)
        return err_nomem(err);
    items = reallocarray(out->items, out->count + 1, sizeof(*items));
    if (!items) {
        free(line);
        return err_nomem(err);
    }
    out->items = items;
    items[out->count++] = line;
    return 0;
}

static int end_device(struct reader *r, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    if (!r->any)
        return 0;
    r->any = false;
    if (r->out->count >= DEVICES_MAX)
        return err_set(err, QSTILL_E_FAILED, "QEMU lists more than %u devices",
                       DEVICES_MAX);
    if (buf_printf(&b, "%s%s%s #%08" PRIx32, r->label, r->address[0] ? "@" : "",
                   r->address, (uint32_t)r->sum) < 0)
        return err_nomem(err);
    return add_line(r->out, buf_take_string(&b), err);
}

/* The bus that a line of this indent stands under. */
static const char *bus_above(const struct reader *r, size_t indent)
{
    while (indent-- > 0)
        if (r->buses[indent][0])
            return r->buses[indent];
    return "";
}

static void begin_bus(struct reader *r, size_t indent, const char *name,
                      size_t len)
{
    for (size_t i = indent; i < INDENT_MAX; i++)
        r->buses[i][0] = '\0';
    snprintf(r->buses[indent], NAME_MAX_LEN, "%.*s", (int)len, name);
}

/* TYPE, id "ID" */
static void begin_device(struct reader *r, size_t indent, const char *text,
                         size_t len)
{
    size_t type = 0, id, id_len = 0;

    for (size_t i = indent; i < INDENT_MAX; i++)
        r->buses[i][0] = '\0';
    while (type < len && text[type] != ',')
        type++;
    for (id = type; id < len && text[id] != '"';)
        id++;
    if (id < len)
        id++;
    while (id + id_len < len && text[id + id_len] != '"')
        id_len++;
    snprintf(r->label, sizeof(r->label), "%.100s/%.*s%s%.*s",
             bus_above(r, indent), (int)(type < 100 ? type : 100), text,
             id_len ? "," : "", (int)(id_len < 100 ? id_len : 100), text + id);
    snprintf(r->type, sizeof(r->type), "%.*s", (int)type, text);
    r->any = true;
    r->indent = indent;
    r->sum = 0;
    r->address[0] = '\0';
}

/* What a drive is now is not what the device is; nor are registers that the
 * guest's firmware writes, though QEMU shows them as properties. */
static bool is_state(const struct reader *r, const char *key, size_t len)
{
    static const struct {
        const char *type, *key; /* of any type: NULL */
    } state[] = {
        {NULL, "drive"},
        {"PIIX4_PM", "smb_io_base"},
        {"q35-pcihost", "MCFG"},
    };

    for (size_t i = 0; i < ARRAY_LEN(state); i++)
        if ((!state[i].type ||
             (!r->registers && strcmp(r->type, state[i].type) == 0)) &&
            strlen(state[i].key) == len && memcmp(key, state[i].key, len) == 0)
            return true;
    return false;
}

/* key = value */
static void add_property(struct reader *r, const char *text, size_t len)
{
    const char *equals = memmem(text, len, " = ", 3);
    size_t key = equals ? (size_t)(equals - text) : 0;

    if (!equals || memchr(text, ' ', key) || is_state(r, text, key))
        return;
    r->sum = sum_bytes(text, len, r->sum);
    if (key == 4 && memcmp(text, "addr", 4) == 0)
        snprintf(r->address, sizeof(r->address), "%.*s",
                 (int)(len - key - 3 < 64 ? len - key - 3 : 64), equals + 3);
}

static int take_line(struct reader *r, const char *line, size_t len,
                     struct qstill_error *err)
{
    size_t indent = 0;

    while (indent < len && line[indent] == ' ')
        indent++;
    while (len > indent && line[len - 1] == '\r')
        len--;
    if (indent >= INDENT_MAX)
        return err_set(err, QSTILL_E_FAILED, "QEMU's device tree is too deep");
    line += indent;
    len -= indent;
    if (len > 5 && memcmp(line, "bus: ", 5) == 0) {
        if (end_device(r, err) < 0)
            return err->code;
        begin_bus(r, indent, line + 5, len - 5);
    } else if (len > 5 && memcmp(line, "dev: ", 5) == 0) {
        if (end_device(r, err) < 0)
            return err->code;
        begin_device(r, indent, line + 5, len - 5);
    } else if (r->any && indent > r->indent) {
        add_property(r, line, len);
    }
    return 0;
}

static int parse(const char *text, bool registers, struct qmp_names *out,
                 struct qstill_error *err)
{
    CLEANUP(freep) struct reader *r = calloc(1, sizeof(*r));
    size_t before = out->count;

    if (!r)
        return err_nomem(err);
    r->out = out;
    r->registers = registers;
    while (*text) {
        size_t len = strcspn(text, "\n");

        if (take_line(r, text, len, err) < 0)
            return err->code;
        text += len + (text[len] == '\n');
    }
    if (end_device(r, err) < 0)
        return err->code;
    if (out->count == before)
        return err_set(err, QSTILL_E_FAILED,
                       "QEMU's `info qtree` lists no devices");
    return 0;
}

int qmp_topology_parse(const char *text, struct qmp_names *out,
                       struct qstill_error *err)
{
    return parse(text, false, out, err);
}

int qmp_topology_parse_before(const char *text, struct qmp_names *out,
                              struct qstill_error *err)
{
    return parse(text, true, out, err);
}

/* ---------------------------------------------------------- memory devices */

static int add_memory_device(const json_t *v, struct qmp_names *out,
                             struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    const json_t *data = json_object_get(v, "data");

    if (buf_printf(&b, "memory/%.64s,%.128s@0x%" PRIx64 " %.128s",
                   field_string(v, "type", ""), field_string(data, "id", ""),
                   field_u64(data, "addr", field_u64(data, "memaddr", 0)),
                   field_string(data, "memdev", "")) < 0)
        return err_nomem(err);
    return add_line(out, buf_take_string(&b), err);
}

static int read_memory_devices(struct qstill_qmp *q, struct qmp_names *out,
                               struct qmp_names *before,
                               struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *list = NULL;
    size_t i;
    json_t *v;

    if (client_ask(q, "query-memory-devices", &list, err) < 0)
        return err->code == QSTILL_E_UNREACHABLE ? err->code : err_clear(err);
    json_array_foreach(list, i, v)
    {
        if (add_memory_device(v, out, err) < 0 ||
            add_memory_device(v, before, err) < 0)
            return err->code;
    }
    return 0;
}

int qmp_topology_read_both(struct qstill_qmp *q, struct qmp_names *out,
                           struct qmp_names *before, struct qstill_error *err)
{
    CLEANUP(qmp_names_fini) struct qmp_names names = QMP_NAMES_INIT;
    CLEANUP(qmp_names_fini) struct qmp_names old = QMP_NAMES_INIT;
    CLEANUP(freep) char *text = NULL;

    if (qmp_hmp(q, "info qtree", &text, err) < 0 ||
        qmp_topology_parse(text, &names, err) < 0 ||
        qmp_topology_parse_before(text, &old, err) < 0 ||
        read_memory_devices(q, &names, &old, err) < 0)
        return err_wrap(err, "reading the VM's devices");
    *out = names;
    *before = old;
    names = old = (struct qmp_names)QMP_NAMES_INIT;
    return 0;
}

int qmp_topology_read(struct qstill_qmp *q, struct qmp_names *out,
                      struct qstill_error *err)
{
    CLEANUP(qmp_names_fini) struct qmp_names before = QMP_NAMES_INIT;

    return qmp_topology_read_both(q, out, &before, err);
}
