/* SPDX-License-Identifier: MIT */
#include "modes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "memstate/cow.h"
#include "memstate/procmem.h"
#include "memstate/uffd.h"
#include "qmp/hazards.h"
#include "qmp/machine.h"
#include "qmp/migrate.h"
#include "ready.h"
#include "session.h"
#include "settings.h"
#include "vmram.h"

static const char *const names[MODE_COUNT] = {"cow", "background", "precopy",
                                              "paused"};

#define NON_MIGRATABLE "non-migratable device:"
#define BLOCKED        "migration-blocked"

const char *mode_name(enum mode m)
{
    return m < MODE_COUNT ? names[m] : "auto";
}

int mode_parse(const char *word, enum mode *out, struct qstill_error *err)
{
    *out = MODE_COUNT;
    if (!word || strcmp(word, "auto") == 0)
        return 0;
    for (unsigned i = 0; i < MODE_COUNT; i++)
        if (strcmp(word, names[i]) == 0) {
            *out = (enum mode)i;
            return 0;
        }
    err_set(err, QSTILL_E_USAGE, "unknown mode '%.32s'", word);
    return err_hint(err, "known are auto, cow, background, precopy, paused");
}

/* ------------------------------------------------------------------- probe */

static void refuse(struct mode_report *r, const char *code, const char *why,
                   const char *hint)
{
    snprintf(r->refused_code, sizeof(r->refused_code), "%s", code);
    snprintf(r->refused, sizeof(r->refused), "%s", why);
    snprintf(r->refused_hint, sizeof(r->refused_hint), "%s", hint);
}

static void set_reason(struct mode_report *r, enum mode m, const char *why)
{
    if (!r->reason[m][0])
        snprintf(r->reason[m], sizeof(r->reason[m]), "%.255s", why);
}

static void set_of_vm(struct mode_report *r, enum mode m, const char *why)
{
    r->of_vm[m] |= !r->reason[m][0];
    set_reason(r, m, why);
}

bool modes_blocker_is_harmless(const char *why)
{
    /* how a text begins, and what it must have */
    static const char *const harmless[][2] = {
        {"State blocked by non-migratable CPU device", ""}, /* invtsc */
        {"'hv-", " CPU flag"},
        {"'hv_", " CPU flag"},
        {"The ", " format used by node "},
    };

    if (strncmp(why, NON_MIGRATABLE, strlen(NON_MIGRATABLE)) == 0)
        return false;
    for (size_t i = 0; i < ARRAY_LEN(harmless); i++)
        if (strncmp(why, harmless[i][0], strlen(harmless[i][0])) == 0 &&
            strstr(why, harmless[i][1]))
            return true;
    return false;
}

static int probe_blockers(struct session *s, struct mode_report *r,
                          struct qstill_error *err)
{
    CLEANUP(qmp_migration_fini) struct qmp_migration m = QMP_MIGRATION_INIT;

    if (qmp_migration_read(s->qmp, &m, err) < 0)
        return err->code;
    if (m.vfio)
        refuse(r, "vfio",
               "VM has VFIO devices, whose state and writes cannot be seen",
               "unplug them for the time of the snapshot");
    for (size_t i = 0; i < m.blocked.count; i++) {
        const char *why = m.blocked.items[i];

        if (strncmp(why, NON_MIGRATABLE, strlen(NON_MIGRATABLE)) == 0)
            refuse(r, "non-migratable-device", why,
                   "remove the device, or take a snapshot without --memory");
        else if (!modes_blocker_is_harmless(why))
            refuse(r, BLOCKED, why,
                   "part of the VM's state may be where no snapshot has it: "
                   "take away what QEMU names (unmount a 9p share, say), or "
                   "take a snapshot without --memory");
        else
            snprintf(r->blocked, sizeof(r->blocked), "%s", why);
        /* "disable migration while dump in progress" */
        r->passing |= strstr(why, " in progress") != NULL;
    }
    if (qmp_migration_is_on(m.state)) {
        refuse(r, "migrating", READY_MIGRATING, "wait until it is over");
        r->passing = true;
    }
    return 0;
}

/* Whether the migration streams of this QEMU have a configuration section:
 * not so those of machine types before 2.4 (pc-q35-2.3), nor where
 * "-global migration.send-configuration=off" says so. */
static bool sends_configuration(const struct session *s, const char *type)
{
    char *const *argv = s->rec.has_launch ? s->rec.launch.argv : NULL;
    const char *version = strrchr(type, '-'), *said = NULL;
    unsigned major, minor;

    for (; argv && *argv; argv++) {
        const char *value = strstr(*argv, "send-configuration");

        value = value ? strrchr(value, '=') : NULL;
        if (value)
            said = value; /* of several the last one counts */
    }
    if (said)
        return strcmp(said, "=off") != 0 && strcmp(said, "=no") != 0 &&
               strcmp(said, "=false") != 0 && strcmp(said, "=n") != 0;
    if (!version || sscanf(version, "-%2u.%2u", &major, &minor) != 2)
        return true;
    return major > 2 || (major == 2 && minor >= 4);
}

/* Our streams begin with that section, and a QEMU that sends none takes none:
 * neither a snapshot nor the way back from a failed load could be read. */
static void probe_stream(struct session *s, const struct qmp_machine *m,
                         struct mode_report *r)
{
    if (!sends_configuration(s, m->type))
        refuse(r, "no-configuration-section",
               "QEMU's migration streams have no configuration section with "
               "this machine type or -global: it could not load the memory",
               "start it with -global migration.send-configuration=on, or take "
               "a snapshot without --memory");
}

/*
 * QEMU from 9.0 on, with TCG: its migration takes the offsets in a block that
 * are dirty for offsets in all RAM. Where a block is longer than the one that
 * all RAM begins with, it fails an assertion as soon as the guest writes, and
 * the VM is gone (tlb_reset_dirty_range_all).
 */
static int probe_tcg(struct session *s, const struct qmp_machine *m,
                     struct mode_report *r, struct qstill_error *err)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;
    uint64_t first = 0;
    char text[256];

    if (m->kvm || strtoul(m->version, NULL, 10) < 9)
        return 0;
    if (qmp_ram_read(s->qmp, &ram, err) < 0)
        return err->code;
    for (size_t i = 0; i < ram.count; i++)
        if (ram.blocks[i].offset == 0)
            first = max_u64(first, ram.blocks[i].total);
    for (size_t i = 0; i < ram.count; i++) {
        const struct qmp_ram_block *b = &ram.blocks[i];

        if (!b->name[0] || b->used <= first)
            continue;
        snprintf(text, sizeof(text),
                 "with TCG, this version of QEMU may abort when it migrates "
                 "RAM block %.100s, which is longer than the first one",
                 b->name);
        set_of_vm(r, MODE_PRECOPY, text);
    }
    return 0;
}

static int probe_machine(struct session *s, struct mode_report *r,
                         struct qstill_error *err)
{
    CLEANUP(qmp_machine_fini) struct qmp_machine m = QMP_MACHINE_INIT;

    if (qmp_machine_read(s->qmp, &m, err) < 0)
        return err->code;
    probe_stream(s, &m, r);
    return probe_tcg(s, &m, r, err);
}

static void set_hazard(struct mode_report *r, const unsigned *modes,
                       size_t count, const char *who, const char *what)
{
    char text[256];

    if (!who[0])
        return;
    snprintf(text, sizeof(text), "%.95s %.150s", who, what);
    for (size_t i = 0; i < count; i++)
        set_of_vm(r, (enum mode)modes[i], text);
}

/* Devices that write to RAM, or take it away, behind what would see it. */
static int probe_devices(struct session *s, struct mode_report *r,
                         struct qstill_error *err)
{
    static const unsigned unseen[] = {MODE_COW, MODE_BACKGROUND, MODE_PAUSED};
    static const unsigned cow[] = {MODE_COW};
    struct qmp_hazards h;
    char text[256];

    if (qmp_hazards_read(s->qmp, &h, err) < 0)
        return err->code;
    if (h.vfio[0]) {
        snprintf(text, sizeof(text),
                 "VM has a VFIO device, %.95s, whose state and writes cannot "
                 "be seen",
                 h.vfio);
        refuse(r, "vfio", text, "unplug it for the time of the snapshot");
    }
    if (h.virtio_mem[0]) {
        snprintf(text, sizeof(text),
                 "%.95s plugs and unplugs memory that belongs to no snapshot",
                 h.virtio_mem);
        refuse(r, "virtio-mem", text,
               "use pc-dimm devices, or take a snapshot without --memory");
    }
    if (h.virtio_pmem[0]) {
        snprintf(text, sizeof(text),
                 "%.95s is a disk whose content belongs to no snapshot",
                 h.virtio_pmem);
        refuse(r, "virtio-pmem", text,
               "use an nvdimm or a disk, or take a snapshot without --memory");
    }
    set_hazard(r, unseen, ARRAY_LEN(unseen), h.vhost,
               "writes to RAM from another process, which is not seen");
    set_hazard(r, unseen, ARRAY_LEN(unseen), h.ivshmem,
               "has memory that other processes write to");
    /* QEMU's blocker names no device; and none of the peers can be loaded */
    if (h.ivshmem[0] && strcmp(r->refused_code, BLOCKED) == 0) {
        snprintf(text, sizeof(text),
                 "%.95s has memory that other processes write to", h.ivshmem);
        refuse(r, BLOCKED, text,
               "remove the device, or take a snapshot without --memory");
    }
    if (h.balloon_reports)
        set_hazard(r, cow, ARRAY_LEN(cow), h.balloon,
                   "gives free pages back all the time (free-page-reporting)");
    r->balloon = h.balloon[0] != '\0';
    return 0;
}

void modes_note_pmem(struct session *s)
{
    struct qstill_error ignored = {0};
    struct qmp_hazards h;

    if (qmp_hazards_read(s->qmp, &h, &ignored) == 0 && h.virtio_pmem[0])
        store_note(s->store,
                   "the content of %s belongs to no snapshot: a revert leaves "
                   "it as it is then",
                   h.virtio_pmem);
}

/* Whether QEMU and its kernel take the capability; it is switched off again.
 * That takes QEMU its time: we may die meanwhile. */
static int probe_background(struct session *s, struct mode_report *r,
                            struct qstill_error *err)
{
    CLEANUP(settings_fini) struct settings was = SETTINGS_INIT;
    struct qstill_error why = {0};
    char text[256];

    /* where it cannot be written down, the capture finds out */
    if (settings_keep(s, &was, &why) < 0)
        return 0;
    settings_enable(s, &was, "background-snapshot", &why);
    settings_put_back(s, &was);
    if (why.code == 0)
        return 0;
    if (why.code != QSTILL_E_FAILED && why.code != QSTILL_E_PRECONDITION) {
        *err = why;
        return err->code;
    }
    snprintf(text, sizeof(text), "QEMU refuses it: %.200s", why.message);
    set_reason(r, MODE_BACKGROUND, text);
    return 0;
}

static int probe_process(struct session *s, struct mode_report *r,
                         struct qstill_error *err)
{
    CLEANUP(procmem_closep) struct procmem *mem = NULL;
    struct qstill_error why = {0};
    char text[256] = "";

    (void)err;
    if (qmp_save_devices_check(s->qmp, &why) < 0) {
        snprintf(text, sizeof(text), "%.240s", why.message);
    } else if (s->pid == 0) {
        snprintf(text, sizeof(text),
                 "the QEMU process behind the socket cannot be seen");
    } else if (procmem_open(&mem, s->pid, &why) < 0) {
        snprintf(text, sizeof(text), "%.240s", why.message);
    }
    if (text[0]) {
        set_reason(r, MODE_PAUSED, text);
        set_reason(r, MODE_COW, text);
    }
    return 0;
}

/* What would be found out only when all is prepared. */
static int check_rights(const struct session *s, struct qstill_error *err)
{
    CLEANUP(closep) int device = -1;

    if (uffd_may(s->pid) || (device = uffd_open_device()) >= 0)
        return 0;
    return err_set(err, QSTILL_E_PERMISSION,
                   "process %d may only make a userfaultfd for faults of user "
                   "mode (as root: sysctl vm.unprivileged_userfaultfd=1, or "
                   "Linux 6.1 with /dev/userfaultfd)",
                   s->pid);
}

static int probe_cow(struct session *s, struct mode_report *r,
                     struct qstill_error *err)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;
    CLEANUP(freep) struct capture_source *sources = NULL;
    struct qstill_error why = {0};
    size_t count = 0;

    if (vmram_find(s, VMRAM_READ, &ram, &sources, &count, &why) < 0 &&
        why.code == QSTILL_E_UNREACHABLE) {
        *err = why;
        return err->code;
    }
    if (why.code == 0 && check_rights(s, &why) == 0)
        capture_cow_check(s->pid, sources, count, r->balloon, &why);
    if (why.code < 0)
        set_reason(r, MODE_COW, why.message);
    else
        r->holes_unseen =
            capture_cow_check(s->pid, sources, count, true, &why) < 0;
    return 0;
}

int modes_probe_cow_first(struct session *s, struct mode_report *r,
                          struct qstill_error *err)
{
    char text[256];

    memset(r, 0, sizeof(*r));
    if (probe_blockers(s, r, err) < 0 || probe_devices(s, r, err) < 0 ||
        probe_machine(s, r, err) < 0)
        return err->code;
    if (r->refused[0])
        for (unsigned m = 0; m < MODE_COUNT; m++)
            set_reason(r, (enum mode)m, r->refused);
    if (r->blocked[0]) {
        snprintf(text, sizeof(text), "QEMU refuses to migrate: %.200s",
                 r->blocked);
        set_of_vm(r, MODE_BACKGROUND, text);
        set_of_vm(r, MODE_PRECOPY, text);
    }
    if (!s->status.running) {
        set_reason(r, MODE_BACKGROUND,
                   "the VM is paused, and some versions of QEMU would resume "
                   "it");
        set_reason(r, MODE_PRECOPY,
                   "the VM is paused, and QEMU would not let it stay so");
    }
    modes_probe_ksm(s, r);
    if (!r->refused[0] && probe_process(s, r, err) < 0)
        return err->code;
    if (!r->reason[MODE_COW][0] && probe_cow(s, r, err) < 0)
        return err->code;
    r->background_open = !r->reason[MODE_BACKGROUND][0];
    return r->reason[MODE_COW][0] ? modes_probe_rest(s, r, err) : 0;
}

int modes_probe_rest(struct session *s, struct mode_report *r,
                     struct qstill_error *err)
{
    if (!r->background_open)
        return 0;
    r->background_open = false;
    return probe_background(s, r, err);
}

int modes_probe(struct session *s, struct mode_report *r,
                struct qstill_error *err)
{
    if (modes_probe_cow_first(s, r, err) < 0)
        return err->code;
    return modes_probe_rest(s, r, err);
}

bool modes_is_for_good(const struct mode_report *r)
{
    if (r->refused[0])
        return !r->passing;
    for (unsigned m = 0; m < MODE_COUNT; m++)
        if (!r->of_vm[m])
            return false;
    return true;
}

/* Why a capture in `mode` would be wrong by now, or NULL. */
static const char *hindered(const struct mode_report *now,
                            const struct mode_report *planned, enum mode mode)
{
    if (now->refused[0])
        return now->refused;
    if (now->reason[mode][0])
        return now->reason[mode];
    if (mode == MODE_COW && now->balloon && planned->holes_unseen)
        return "a balloon gives shared memory or huge pages back unseen";
    return NULL;
}

int modes_look_again(struct session *s, const struct mode_report *planned,
                     enum mode mode, struct qstill_error *err)
{
    struct mode_report now = {0};
    const char *why;

    if (probe_devices(s, &now, err) < 0)
        return err->code;
    why = hindered(&now, planned, mode);
    if (!why)
        return 0;
    err_set(err, QSTILL_E_BUSY,
            "a device was plugged in while the snapshot was taken: %s", why);
    return err_hint(err, "qstill check --memory tells which modes are left; "
                         "create the snapshot again");
}

int modes_choose(const struct mode_report *r, enum mode wanted, bool paused,
                 enum mode *out, char *why, size_t why_size,
                 struct qstill_error *err)
{
    size_t n = 0;

    why[0] = '\0';
    if (r->refused[0]) {
        err_set(err, QSTILL_E_PRECONDITION, "memory cannot be captured: %s",
                r->refused);
        return err_hint(err, "%s", r->refused_hint);
    }
    if (wanted != MODE_COUNT) {
        *out = wanted;
        if (!r->reason[wanted][0])
            return 0;
        err_set(err, QSTILL_E_PRECONDITION, "mode %s cannot be used: %s",
                mode_name(wanted), r->reason[wanted]);
        return err_hint(err, "--mode auto takes one that can");
    }
    /* Nobody waits for a VM that is paused anyway. */
    if (paused && !r->reason[MODE_PAUSED][0]) {
        snprintf(why, why_size, "the VM is paused");
        *out = MODE_PAUSED;
        return 0;
    }
    for (unsigned m = 0; m < MODE_COUNT; m++) {
        if (!r->reason[m][0]) {
            *out = (enum mode)m;
            return 0;
        }
        if (n < why_size)
            n += (size_t)snprintf(why + n, why_size - n, "%s%s: %s",
                                  n ? "; " : "", names[m], r->reason[m]);
    }
    err_set(err, QSTILL_E_PRECONDITION,
            "memory cannot be captured in any mode: %s", why);
    return err_hint(err, "qstill check --memory says more");
}
