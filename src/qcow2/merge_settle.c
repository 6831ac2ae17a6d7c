/* SPDX-License-Identifier: MIT */
/* The files of a dead merge, by its record: back, or forward. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "merge_impl.h"
#include "temp_name.h"

enum state { STATE_OLD, STATE_NEW, STATE_UNKNOWN };

/* What has its name by now, a copy out of a backup say, may be another state of
 * it: nobody can tell what that merge had done there. */
int record_not_there(const struct merge_file *f, struct qstill_error *err)
{
    return err_set(err, QSTILL_E_CORRUPT,
                   "an unfinished merge was about %s, and that file is %s",
                   f->path,
                   merge_id_look(f->path, NULL, false, NULL) == MERGE_ABSENT
                       ? "gone"
                       : "another by now");
}

/* The target's file, wherever it stands now. */
static int open_target(const struct io *io, const struct merge_record *r,
                       struct image **out, struct qstill_error *err)
{
    const char *path = r->target.path;

    if (!merge_id_is(path, &r->target.id))
        path = r->result.path;
    if (!merge_id_is(path, &r->target.id))
        return record_not_there(&r->target, err);
    if (image_open(out, io, path, QCOW2_FORMAT_QCOW2, err) < 0 ||
        image_lock((*out)->fd, path, IMAGE_LOCK_WRITE, err) < 0 ||
        image_check_same(*out, err) < 0) /* it was read before the lock */
        return err->code;
    return image_open_write(*out, err);
}

static enum state state_of(const struct merge_record *r,
                           const struct image *img)
{
    const struct qcow2_header *h = &img->info.header;

    if (h->l1_offset == r->new_l1 && strcmp(h->backing, r->new_backing) == 0)
        return STATE_NEW;
    if (h->l1_offset == r->old_l1 && strcmp(h->backing, r->old_backing) == 0)
        return STATE_OLD;
    /* its L1 table has moved, as in a resize: the name tells, for the new one
     * came with the new table in one sector */
    if (r->kind == MERGE_IN_PLACE &&
        strcmp(r->old_backing, r->new_backing) != 0) {
        if (strcmp(h->backing, r->old_backing) == 0)
            return STATE_OLD;
        if (strcmp(h->backing, r->new_backing) == 0)
            return STATE_NEW;
    }
    /* somebody gave it another backing file before the flip */
    if (r->kind == MERGE_IN_PLACE && r->old_l1 != r->new_l1 &&
        h->l1_offset == r->old_l1)
        return STATE_OLD;
    return STATE_UNKNOWN;
}

/* The refcounts tell what is in use: a VM that ran since may have used the
 * room behind the old end. */
static int cut(struct image *img, uint64_t old_size, struct qstill_error *err)
{
    CLEANUP(refs_fini) struct refs refs = {0};
    CLEANUP(refblocks_fini) struct refblocks stored = {0};
    CLEANUP(refs_report_fini) struct refs_report report = {0};
    CLEANUP(aio_closep) struct aio *aio = NULL;
    uint64_t cs = img->cluster_size, end;

    if (img->info.file_size <= old_size)
        return 0;
    if (aio_open(&aio, img->io, NULL, err) < 0 ||
        refs_count(img, aio, &refs, &stored, &report, err) < 0)
        return err->code;
    if (report.corruptions > report.marks)
        return 0; /* not ours to judge */
    for (end = refs.n; end > 0 && refs.count[end - 1] == 0; end--)
        ;
    end = max_u64(end * cs, old_size);
    if (end >= img->info.file_size)
        return 0;
    if (io_truncate(img->io, img->wfd, end, img->path, err) < 0)
        return err->code;
    return io_sync(img->io, img->wfd, img->path, err);
}

/* An fsync that failed may have left the new sector in memory only: writing
 * it again makes it durable for certain. */
static int write_header_again(struct image *img, struct qstill_error *err)
{
    uint8_t sector[QCOW2_SECTOR];

    if (io_read_full(img->io, img->fd, sector, sizeof(sector), 0, err) < 0 ||
        io_write_full(img->io, img->wfd, sector, sizeof(sector), 0, err) < 0)
        return err_wrap(err, "%s", img->path);
    return io_datasync(img->io, img->wfd, img->path, err);
}

/* Blocks of clusters that nothing refers to. */
static void trim(struct image *img)
{
    CLEANUP(refs_fini) struct refs refs = {0};
    CLEANUP(refblocks_fini) struct refblocks stored = {0};
    CLEANUP(refs_report_fini) struct refs_report report = {0};
    CLEANUP(aio_closep) struct aio *aio = NULL;
    struct qstill_error ignored;

    if (aio_open(&aio, img->io, NULL, &ignored) < 0 ||
        refs_count(img, aio, &refs, &stored, &report, &ignored) < 0 ||
        report.corruptions > 0)
        return;
    for (uint64_t c = 0, n = image_clusters(img); c < n;) {
        uint64_t from = c;

        while (c < n && refs.count[c] == 0)
            c++;
        io_punch(img->io, img->wfd, from * img->cluster_size,
                 (c - from) * img->cluster_size);
        c += c == from;
    }
}

/* The file that is to be replaced, locked, and as it was when we planned; nor
 * does anybody stand on the result by its present name. */
static int check_replaced(const struct io *io, const struct merge_record *r,
                          bool *same, int *lock, struct qstill_error *err)
{
    const struct merge_id *id =
        r->kind == MERGE_NEW_FILE ? &r->made : &r->target.id;
    struct merge_id now;
    struct stat st;

    *same = true;
    if (r->result.id.ino == 0 || merge_id_is(r->result.path, id)) /* it was */
        return 0;
    /* it was moved: what stands on the target sees the same in it */
    *same = merge_id_look(r->result.path, NULL, false, NULL) != MERGE_ABSENT;
    if (!*same)
        return 0;
    if (io_openat(io, AT_FDCWD, r->result.path, O_RDONLY, 0, lock, err) < 0 ||
        image_lock(*lock, r->result.path, IMAGE_LOCK_WRITE, err) < 0)
        return err->code;
    if (fstat(*lock, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", r->result.path);
    *same = merge_id_look(r->result.path, &r->result.id, true, &now) ==
                MERGE_SAME &&
            (uint64_t)st.st_size == r->result_size &&
            now.mtime_ns == r->result_mtime_ns;
    *same = *same && record_may_rename(io, r);
    return 0;
}

/* What goes must not be in use. The locks live until `fds` are closed. */
static int lock_gone(const struct io *io, const struct merge_record *r,
                     int *fds, struct qstill_error *err)
{
    for (size_t i = 0; i < r->gone_count; i++) {
        if (!merge_id_is(r->gone[i].path, &r->gone[i].id))
            continue;
        if (io_openat(io, AT_FDCWD, r->gone[i].path, O_RDONLY, 0, &fds[i],
                      err) < 0 ||
            image_lock(fds[i], r->gone[i].path, IMAGE_LOCK_WRITE, err) < 0)
            return err->code;
    }
    return 0;
}

static int finish_locked(const struct io *io, const struct merge_record *r,
                         int *fds, struct qstill_error *err)
{
    CLEANUP(closep) int replaced = -1;
    uint64_t ignored = 0, *freed = &ignored;
    bool same;

    if (r->how && r->how->done)
        freed = &r->how->done->count.freed;
    if (record_sweep_link(io, r, err) < 0 ||
        check_replaced(io, r, &same, &replaced, err) < 0 ||
        lock_gone(io, r, fds, err) < 0)
        return err->code;
    if (same)
        return record_finish(io, r, true, freed, err);
    if (replaced >= 0)
        record_tell(r, r->result.path,
                    "it was changed, or an image stands on what was to get its "
                    "name");
    return 0;
}

int record_finish_late(const struct io *io, const struct merge_record *r,
                       struct qstill_error *err)
{
    CLEANUP(freep) int *fds = malloc((r->gone_count + 1) * sizeof(*fds));
    int result;

    if (!fds)
        return err_nomem(err);
    for (size_t i = 0; i < r->gone_count; i++)
        fds[i] = -1;
    result = finish_locked(io, r, fds, err);
    for (size_t i = 0; i < r->gone_count; i++)
        closep(&fds[i]);
    return result;
}

int record_settle(const struct io *io, const struct merge_record *r,
                  struct qstill_error *err)
{
    CLEANUP(image_closep) struct image *img = NULL;

    if (open_target(io, r, &img, err) < 0)
        return err->code;
    switch (state_of(r, img)) {
    case STATE_OLD:
        return cut(img, r->old_size, err);
    case STATE_NEW:
        if (write_header_again(img, err) < 0 ||
            record_finish_late(io, r, err) < 0)
            return err->code;
        trim(img);
        return 0;
    default:
        return err_set(err, QSTILL_E_CORRUPT,
                       "%s was changed by others since a merge of it broke off",
                       img->path);
    }
}

/* Ours is the file that was written down; or, before that, one by the name that
 * was made up for it. (Older journals have a plain one: there it is one that
 * came after the journal.) */
static bool is_made_by_us(const struct merge_record *r,
                          const struct merge_journal *j)
{
    struct qstill_error ignored = {0};
    struct merge_id journal, file;

    if (r->made.ino)
        return merge_id_is(r->target.path, &r->made);
    if (temp_name_is(r->target.path, MERGE_TEMP))
        return access(r->target.path, F_OK) == 0;
    return merge_id_of(j->fd, &journal, &ignored) == 0 && journal.born_ns &&
           merge_id_look(r->target.path, NULL, false, &file) != MERGE_ABSENT &&
           file.born_ns >= journal.born_ns;
}

int record_settle_new_file(const struct io *io, const struct merge_record *r,
                           const struct merge_journal *j,
                           struct qstill_error *err)
{
    CLEANUP(closep) int dirfd = -1;
    const char *name;

    if (r->made.ino && merge_id_is(r->result.path, &r->made))
        return record_finish_late(io, r, err);
    if (!is_made_by_us(r, j))
        return 0;
    if (path_open_dir(r->target.path, &dirfd, &name, err) < 0)
        return err->code;
    return io_unlink(io, dirfd, name, err);
}

int record_is_torn(const struct io *io, const struct merge_record *r,
                   bool *torn, struct qstill_error *err)
{
    CLEANUP(image_closep) struct image *img = NULL;

    *torn = false;
    if (r->kind != MERGE_OVERWRITE)
        return 0;
    if (open_target(io, r, &img, err) < 0)
        return err->code;
    *torn = state_of(r, img) == STATE_OLD;
    return *torn ? cut(img, r->old_size, err) : 0;
}
