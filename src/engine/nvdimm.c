/* SPDX-License-Identifier: MIT */
#include "nvdimm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "hostinfo.h"
#include "inplace.h"
#include "launch_args.h"
#include "launch_opts.h"
#include "memstate/ramset.h"
#include "memstate/undolog.h"
#include "qmp/ram.h"
#include "qmp/topology.h"
#include "session.h"

#define OBJECTS "/objects/"

static const char *backend_of(const char *block)
{
    size_t n = strlen(OBJECTS);

    return strncmp(block, OBJECTS, n) == 0 ? block + n : block;
}

/* ------------------------------------------------------------------- loads */

int nvdimm_loads(struct session *s, const struct manifest *m,
                 struct arena *arena, struct journal_load **loads,
                 size_t *count, const char **boot, struct qstill_error *err)
{
    const struct launch_record *rec = &s->rec.launch;
    struct hostinfo host = {0};

    *count = 0;
    *loads = arena_array(arena, m->block_count + 1, sizeof(**loads));
    if (!*loads)
        return err_nomem(err);
    for (size_t i = 0; s->rec.has_launch && i < m->block_count; i++) {
        const char *id = m->blocks[i].id;
        CLEANUP(freep) char *file = NULL;
        struct journal_load *l = &(*loads)[*count];

        if (!m->blocks[i].main || launch_ram_is_readonly(rec, id))
            continue;
        file = launch_ram_file(rec, id);
        if (!file)
            continue;
        *l = (struct journal_load){arena_strdup(arena, id),
                                   arena_strdup(arena, file)};
        if (!l->block || !l->file)
            return err_nomem(err);
        ++*count;
    }
    if (hostinfo_read_names(&host, err) < 0)
        return err->code;
    *boot = arena_strdup(arena, host.boot_id);
    return *boot ? 0 : err_nomem(err);
}

/* -------------------------------------------------------------------- note */

static void note(struct session *s, const char *id, const char *file,
                 const char *what)
{
    store_note(s->store, "the content of nvdimm memory %s (%s)%s",
               backend_of(id), file, what);
}

/* Also of those that were plugged in. */
static void note_live(struct session *s, const char *what)
{
    CLEANUP(qmp_memdevs_fini) struct qmp_memdevs devs = QMP_MEMDEVS_INIT;
    CLEANUP(qmp_names_fini) struct qmp_names lines = QMP_NAMES_INIT;
    struct qstill_error ignored = {0};
    static const char begin[] = "memory/nvdimm,";

    if (qmp_topology_read(s->qmp, &lines, &ignored) < 0 ||
        qmp_memdevs_read(s->qmp, NULL, &devs, &ignored) < 0)
        return;
    for (size_t i = 0; i < lines.count; i++) {
        const char *line = lines.items[i], *dev = strrchr(line, ' ');

        if (strncmp(line, begin, strlen(begin)) != 0 || !dev)
            continue;
        for (size_t k = 0; k < devs.count; k++)
            if (strcmp(backend_of(dev + 1), devs.items[k].id) == 0 &&
                devs.items[k].share && devs.items[k].mem_path[0] &&
                !(s->rec.has_launch &&
                  launch_ram_is_readonly(&s->rec.launch, devs.items[k].id)))
                note(s, devs.items[k].id, devs.items[k].mem_path, what);
    }
}

/* Of a VM that is off: by its command line. */
static void note_recorded(struct session *s, const char *what)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    struct qstill_error ignored = {0};

    if (!s->rec.has_launch ||
        launch_args_parse(&args, s->rec.launch.argv, &ignored) < 0)
        return;
    for (size_t i = 0; i < args.count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        CLEANUP(freep) char *file = NULL;
        const char *memdev;

        if (!launch_arg_is(&args.v[i], "device") || !args.v[i].value ||
            opts_parse(&o, args.v[i].value, "driver", &ignored) < 0)
            continue;
        memdev = opts_get(&o, "memdev");
        file = memdev ? launch_ram_file(&s->rec.launch, memdev) : NULL;
        if (file && !launch_ram_is_readonly(&s->rec.launch, memdev))
            note(s, memdev, file, what);
    }
}

void nvdimm_note(struct session *s, const char *what)
{
    if (s->qmp)
        note_live(s, what);
    else
        note_recorded(s, what);
}

/* ---------------------------------------------------------------- put back */

struct files {
    const struct journal *j;
    int *now;   /* each one's file, */
    int *saved; /* and that of the snapshot */
    uint64_t pages, others;
};

static void files_close(struct files *f)
{
    for (size_t i = 0; f->now && i < f->j->load_count; i++) {
        closep(&f->now[i]);
        closep(&f->saved[i]);
    }
    free(f->now);
    free(f->saved);
}

static int files_open(struct files *f, struct session *s,
                      struct qstill_error *err)
{
    size_t n = f->j->load_count;
    CLEANUP(closep) int dir = -1, memory = -1;
    char name[RAMSET_NAME_SIZE];

    f->now = calloc(n, sizeof(*f->now));
    f->saved = calloc(n, sizeof(*f->saved));
    if (!f->now || !f->saved) {
        free(f->now);
        f->now = NULL;
        return err_nomem(err);
    }
    for (size_t i = 0; i < n; i++)
        f->now[i] = f->saved[i] = -1;
    if (store_opendirat(s->snapsfd, f->j->snapshot, &dir, err) < 0 ||
        store_opendirat(dir, STORE_MEMORY, &memory, err) < 0)
        return err->code;
    for (size_t i = 0; i < n; i++) {
        const struct journal_load *l = &f->j->loads[i];

        if (ramset_file_name(l->block, name, err) < 0 ||
            file_openat(memory, name, O_RDONLY, 0, &f->saved[i], err) < 0 ||
            file_openat(AT_FDCWD, l->file, O_RDWR, 0, &f->now[i], err) < 0)
            return err->code;
    }
    return 0;
}

/* The revert has brought it to what the snapshot has. What is neither that nor
 * what was before is somebody else's, later. */
static int put_page(void *user, uint64_t id, uint64_t page, const uint8_t *data,
                    struct qstill_error *err)
{
    struct files *f = user;
    uint8_t now[RAMSET_PAGE], saved[RAMSET_PAGE];
    uint64_t off = page * RAMSET_PAGE;
    size_t i = 0;

    while (i < f->j->load_count && undolog_id_sum(f->j->loads[i].block) != id)
        i++;
    if (i == f->j->load_count)
        return 0;
    if (file_read_full(f->now[i], now, sizeof(now), off, err) < 0 ||
        file_read_full(f->saved[i], saved, sizeof(saved), off, err) < 0)
        return err->code;
    if (memcmp(now, data, sizeof(now)) == 0)
        return 0;
    if (memcmp(now, saved, sizeof(now)) != 0) {
        f->others++;
        return 0;
    }
    f->pages++;
    return file_write_full(f->now[i], data, sizeof(now), off, err);
}

/* A host that went down may have lost pages of the log that was never synced,
 * and kept what they stood for. */
static bool is_this_boot(const struct journal *j)
{
    struct qstill_error ignored = {0};
    struct hostinfo host = {0};

    return j->boot && hostinfo_read_names(&host, &ignored) == 0 &&
           strcmp(host.boot_id, j->boot) == 0;
}

int nvdimm_put_back(struct session *s, struct journal *j, uint64_t *pages,
                    struct qstill_error *err)
{
    CLEANUP(files_close) struct files f = {.j = j};
    CLEANUP(closep) int log = -1;

    *pages = 0;
    if (j->load_count == 0)
        return 0;
    if (file_openat(s->vmfd, INPLACE_PAGES, O_RDONLY, 0, &log, err) < 0 ||
        files_open(&f, s, err) < 0 || undolog_each(log, put_page, &f, err) < 0)
        return err_wrap(err, "bringing the content of an nvdimm back");
    for (size_t i = 0; i < j->load_count; i++)
        if (fdatasync(f.now[i]) < 0)
            return err_errno(err, errno, "cannot sync %s", j->loads[i].file);
    *pages = f.pages;
    if (f.others == 0 && is_this_boot(j)) {
        files_close(&f);
        f = (struct files){.j = j};
        j->load_count = 0;
    }
    return 0;
}

/* ------------------------------------------------------------------- mixed */

static const char *name_of(struct session *s, const char *id)
{
    const struct manifest *m = id ? tree_find(&s->tree, id) : NULL;

    return m ? m->name : NULL;
}

void nvdimm_tell_mixed(struct session *s, const struct journal *j)
{
    const char *name = name_of(s, j->snapshot), *kept = name_of(s, j->kept);

    for (size_t i = 0; i < j->load_count; i++) {
        CLEANUP(buf_fini) struct buf b = BUF_INIT;

        buf_printf(&b,
                   "the loading was broken off: %s, the file of RAM block %s, "
                   "may be a part of the snapshot, and of what it was before: "
                   "qstill revert %s %s --restore eager makes it whole",
                   j->loads[i].file, j->loads[i].block, s->vm,
                   name ? name : j->snapshot);
        if (kept)
            buf_printf(&b, "; %s has what it was before", kept);
        store_note(s->store, "%.*s", (int)b.len, (const char *)b.data);
    }
}
