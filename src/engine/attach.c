/* SPDX-License-Identifier: MIT */
/*
 * attach: makes a running VM known. Reads its disks and how its process was
 * started; refuses what would make snapshots of it wrong.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/options.h"
#include "graph_check.h"
#include "lock.h"
#include "name.h"
#include "protect.h"
#include "qmp/machine.h"
#include "qstill-qmp.h"
#include "reach.h"
#include "session.h"
#include "spare.h"
#include "trash.h"

static bool name_is_free(const struct vm_record *rec, const char *name)
{
    return *name && !vmrecord_disk(rec, name);
}

/* What users call the disk: the device's id, the drive's, the node's. */
static const char *pick_name(struct vm_record *rec, const struct qmp_disk *q,
                             size_t index)
{
    const char *choices[] = {q->qdev_id, q->device,
                             q->node_auto ? "" : q->node};

    for (size_t i = 0; i < ARRAY_LEN(choices); i++)
        if (choices[i] && name_is_free(rec, choices[i]) &&
            strlen(choices[i]) <= NAME_MAX_LEN && !strchr(choices[i], '/'))
            return arena_strdup(&rec->arena, choices[i]);
    return arena_printf(&rec->arena, "disk%zu", index);
}

static const char *dup_or_null(struct arena *a, const char *s)
{
    return s && *s ? arena_strdup(a, s) : NULL;
}

static int check_disk(const struct vm_record *rec, const struct qmp_disk *q,
                      const char *path, struct qstill_error *err)
{
    struct stat st;

    if (q->encrypted)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "disk %s is encrypted, which qstill cannot snapshot",
                       path);
    if (*q->protocol && strcmp(q->protocol, "file") != 0) {
        err_set(err, QSTILL_E_PRECONDITION,
                "disk %s is no file but %s, and its snapshots cannot be kept",
                path, q->protocol);
        return err_hint(err, "only disks that are image files are supported");
    }
    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode)) {
        err_set(err, QSTILL_E_PRECONDITION,
                "disk image %s cannot be found from here", path);
        return err_hint(err, "QEMU may see other folders than qstill, or run "
                             "with -snapshot, which keeps nothing");
    }
    for (size_t i = 0; i < rec->disk_count; i++)
        if (session_same_file(rec->disks[i].head_path, path))
            return err_set(err, QSTILL_E_PRECONDITION,
                           "two disks of the VM use the image %s", path);
    return 0;
}

static int add_disk(struct vm_record *rec, int pid, const struct qmp_disk *q,
                    size_t index, struct qstill_error *err)
{
    struct arena *a = &rec->arena;
    const char *path = *q->protocol_path ? q->protocol_path : q->path;
    struct vm_disk *d = &rec->disks[rec->disk_count];
    CLEANUP(freep) char *real = NULL;
    char *abs = session_resolve(a, &rec->launch, path);

    /* Layers are kept by their real names: a link may point elsewhere later. */
    real = abs ? realpath(abs, NULL) : NULL;
    if (real)
        abs = arena_strdup(a, real);
    if (!abs)
        return err_nomem(err);
    if (check_disk(rec, q, abs, err) < 0 || session_check_shape(q, err) < 0 ||
        graph_check_chain(&rec->launch, 0, q, err) < 0 ||
        graph_check_open(&rec->launch, pid, q, err) < 0)
        return err->code;
    d->qdev = dup_or_null(a, q->qdev);
    d->device = dup_or_null(a, q->device);
    d->attach_path = arena_strdup(a, path);
    d->attach_format = arena_strdup(a, q->driver);
    d->head_path = abs;
    d->head_format = d->attach_format;
    d->virtual_size = q->virtual_size;
    d->name = pick_name(rec, q, index);
    if (!d->attach_path || !d->attach_format || !d->name)
        return err_nomem(err);
    rec->disk_count++;
    return 0;
}

static int read_disks(struct vm_record *rec, struct qstill_qmp *q,
                      struct qstill_error *err)
{
    struct qstill_error ignored = {0};
    pid_t pid = 0;
    CLEANUP(qmp_disks_fini) struct qmp_disks disks = QMP_DISKS_INIT;

    if (qmp_disks_read(q, &disks, err) < 0)
        return err->code;
    if (disks.count > VM_DISKS_MAX)
        return err_set(err, QSTILL_E_PRECONDITION, "over %d disks",
                       VM_DISKS_MAX);
    rec->disks = arena_array(&rec->arena, disks.count + 1, sizeof(*rec->disks));
    if (!rec->disks)
        return err_nomem(err);
    qstill_qmp_peer_pid(q, &pid, &ignored);
    for (size_t i = 0; i < disks.count; i++)
        if (session_takes_part(&disks.items[i]) &&
            add_disk(rec, pid, &disks.items[i], i, err) < 0)
            return err->code;
    return 0;
}

static int read_launch(struct vm_record *rec, struct qstill_qmp *q,
                       struct qstill_error *err)
{
    CLEANUP(launch_record_fini) struct launch_record launch = {0};
    pid_t pid;

    if (qstill_qmp_peer_pid(q, &pid, err) < 0 ||
        launch_read(pid, &launch, err) < 0)
        return err->code;
    return vmrecord_set_launch(rec, &launch, err);
}

static int read_vm(struct vm_record *rec, const char *socket,
                   struct qstill_store *store, struct qstill_error *err)
{
    CLEANUP(qmp_machine_fini) struct qmp_machine machine = QMP_MACHINE_INIT;
    struct qstill_qmp *q = NULL;
    struct qstill_error why = {0};
    int r;

    if (qstill_qmp_open(&q, socket, NULL, err) < 0)
        return err->code;
    if (read_launch(rec, q, &why) < 0)
        store_note(store,
                   "cannot read how the VM was started (%s): it cannot be "
                   "started again without --launcher",
                   why.message);
    r = qmp_machine_read(q, &machine, err);
    if (r == 0) {
        rec->uuid = dup_or_null(&rec->arena, machine.uuid);
        r = read_disks(rec, q, err);
    }
    qstill_qmp_close(q);
    return r;
}

/* Sockets are kept as absolute paths: later commands run elsewhere. */
static const char *absolute(struct arena *a, const char *path)
{
    CLEANUP(freep) char *cwd = NULL;

    if (!path || path[0] == '/')
        return path ? arena_strdup(a, path) : NULL;
    cwd = getcwd(NULL, 0);
    return cwd ? arena_printf(a, "%s/%s", cwd, path) : NULL;
}

static int fill_record(struct vm_record *rec, const char *vm,
                       const struct qstill_attach_options *o,
                       struct qstill_error *err)
{
    rec->name = arena_strdup(&rec->arena, vm);
    rec->qmp = absolute(&rec->arena, o->qmp);
    rec->agent = absolute(&rec->arena, o->agent);
    rec->launcher = dup_or_null(&rec->arena, o->launcher);
    if (!rec->name || !rec->qmp || (o->agent && !rec->agent))
        return err_nomem(err);
    return 0;
}

/* Two records of one VM would write over each other's heads. */
static int check_other(struct qstill_store *store, const char *other,
                       const struct vm_record *rec, struct qstill_error *err)
{
    CLEANUP(closep) int vmfd = -1;
    CLEANUP(vmrecord_fini) struct vm_record o = {.arena = ARENA_INIT};
    struct qstill_error ignored = {0};
    bool same;

    if (store_open_vm(store, other, &vmfd, &ignored) < 0 ||
        vmrecord_load(vmfd, &o, &ignored) < 0)
        return 0; /* no VM, or a damaged one: not our business here */
    same = session_same_file(o.qmp, rec->qmp);
    for (size_t i = 0; i < o.disk_count; i++)
        for (size_t k = 0; k < rec->disk_count; k++)
            same = same || session_same_file(o.disks[i].head_path,
                                             rec->disks[k].head_path);
    if (!same)
        return 0;
    err_set(err, QSTILL_E_BUSY, "this VM is attached already, as %s", other);
    return err_hint(err, "qstill detach %s forgets it", other);
}

static int check_others(struct qstill_store *store, const struct vm_record *rec,
                        struct qstill_error *err)
{
    CLEANUP(closep) int top = -1;
    char **names = NULL;
    size_t count = 0;
    struct qstill_error none = {0};

    if (store_open_dir(store, &top, &none) < 0)
        return 0; /* no store yet */
    if (store_names(top, &names, &count, err) < 0)
        return err->code;
    for (size_t i = 0; i < count && err->code == 0; i++)
        if (names[i][0] != '.')
            check_other(store, names[i], rec, err);
    store_names_free(names, count);
    return err->code;
}

static bool has_record(int vmfd)
{
    return faccessat(vmfd, STORE_RECORD, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* The folder of a VM that could not be written down. Only what is empty goes:
 * on a full store another attach has come no further than we. */
static void withdraw(struct qstill_store *store, const char *vm, int vmfd)
{
    struct qstill_error ignored = {0};
    CLEANUP(closep) int top = -1;

    if (has_record(vmfd) || store_open_dir(store, &top, &ignored) < 0 ||
        unlinkat(vmfd, STORE_SNAPSHOTS, AT_REMOVEDIR) < 0)
        return;
    unlinkat(vmfd, STORE_LOCK, 0);
    unlinkat(top, vm, AT_REMOVEDIR);
}

static int publish_vm(struct qstill_store *store, const char *vm,
                      const struct vm_record *rec, struct qstill_error *err)
{
    CLEANUP(closep) int vmfd = -1;
    int lockfd = -1;

    if (store_make_vm(store, vm, &vmfd, err) < 0)
        return err->code;
    if (lock_take(vmfd, "attach", &lockfd, err) < 0) {
        if (err->code == QSTILL_E_NO_SPACE)
            withdraw(store, vm, vmfd);
        return err->code;
    }
    if (has_record(vmfd))
        err_set(err, QSTILL_E_BUSY, "VM %s is attached already", vm);
    else if (vmrecord_save(vmfd, rec, err) < 0)
        withdraw(store, vm, vmfd);
    else
        spare_make(vmfd, rec->disk_count);
    lock_release(&lockfd);
    return err->code;
}

QSTILL_PUBLIC int qstill_vm_attach(struct qstill_store *store, const char *vm,
                                   const struct qstill_attach_options *options,
                                   struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    CLEANUP(vmrecord_fini) struct vm_record rec = {.arena = ARENA_INIT};
    CLEANUP(closep) int vmfd = -1;
    struct qstill_error absent = {0};
    struct qstill_attach_options o;

    if (name_check("VM name", vm, err) < 0 ||
        options_take(&o, sizeof(o), options, "attach", err) < 0)
        return err->code;
    if (!o.qmp || !*o.qmp)
        return err_set(err, QSTILL_E_USAGE, "attach needs a QMP socket");
    if (store_open_vm(store, vm, &vmfd, &absent) == 0) {
        err_set(err, QSTILL_E_BUSY, "VM %s is attached already", vm);
        return err_hint(err, "qstill detach %s forgets it", vm);
    }
    if (absent.code != QSTILL_E_NOT_FOUND) {
        *err = absent;
        return err->code;
    }
    if (fill_record(&rec, vm, &o, err) < 0 ||
        read_vm(&rec, rec.qmp, store, err) < 0 ||
        check_others(store, &rec, err) < 0)
        return err->code;
    return publish_vm(store, vm, &rec, err);
}

/* Without its base a layer is never merged, however long it waits. */
static bool waits_in_vain(const struct session *s)
{
    struct reach reach;

    reach_init(&reach, geteuid(), getegid());
    for (size_t i = 0; i < s->rec.hidden_count; i++) {
        const struct vm_hidden *h = &s->rec.hidden[i];
        struct qstill_error ignored = {0};

        if (reach_chain(&reach, h->path, h->format, &ignored) !=
            QSTILL_E_NOT_FOUND)
            return false;
    }
    return true;
}

/* From now on they are files like others. */
static void leave_hidden(struct session *s)
{
    for (size_t i = 0; i < s->rec.hidden_count; i++) {
        const struct vm_hidden *h = &s->rec.hidden[i];
        struct qstill_error ignored = {0};

        protect_clear(h->path, &ignored);
        store_note(s->store,
                   "%s stays: images of disk %s stand on it, and without its "
                   "own backing file it cannot be merged with them",
                   h->path, h->disk);
    }
}

QSTILL_PUBLIC int qstill_vm_detach(struct qstill_store *store, const char *vm,
                                   struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    CLEANUP(closep) int top = -1;
    struct session s;

    if (session_open(&s, store, vm, "detach", err) < 0)
        return err->code;
    if (s.tree.count + s.tree.damaged_count > 0) {
        size_t n = s.tree.count + s.tree.damaged_count;

        err_set(err, QSTILL_E_PRECONDITION, "VM %s still has %zu snapshot%s",
                vm, n, n == 1 ? "" : "s");
        err_hint(err, "delete them first: qstill list %s", vm);
    } else if (trash_empty(&s, NULL, err) < 0) {
        err_wrap(err, "emptying the trash");
    } else if (s.rec.hidden_count > 0 && !waits_in_vain(&s)) {
        err_set(err, QSTILL_E_PRECONDITION,
                "VM %s still has %zu layer%s to be merged", vm,
                s.rec.hidden_count, s.rec.hidden_count == 1 ? "" : "s");
        err_hint(err, "run qstill recover %s", vm);
    } else if (store_open_dir(store, &top, err) == 0) {
        leave_hidden(&s);
        store_remove_tree(top, vm, err);
    }
    session_close(&s);
    return err->code;
}
