/* SPDX-License-Identifier: MIT */
#include "spare.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/publish.h"
#include "session.h"

/* vm.json and the journal have a line or some for each layer that goes: 300
 * bytes and its path. */
#define SPARE_MIN       (16u << 10)
#define SPARE_PER_LAYER 512u
#define SPARE_STEP      4096
#define SPARE_JOURNAL   4096u /* of a merge */

static const char *const names[] = {".spare.0", ".spare.1"};

static int make_one(int vmfd, const char *name, size_t size,
                    struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct stat st;

    if (file_openat(vmfd, name, O_WRONLY | O_CREAT, 0600, &fd, err) < 0)
        return err->code;
    if (fstat(fd, &st) == 0 && (size_t)st.st_size >= size)
        return 0;
    if (fallocate(fd, 0, 0, (off_t)size) < 0)
        return err_set(err, QSTILL_E_NO_SPACE, "no room for %s", name);
    return 0;
}

static off_t size_of(int vmfd, const char *name)
{
    struct stat st;

    return fstatat(vmfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 ? st.st_size : 0;
}

/* What was cut off, and the file that was replaced, have left room: who is at
 * work needs it again soon, and what is merged meanwhile would take it. */
static void make_again(int vmfd, const char *name, off_t size)
{
    for (; size >= SPARE_STEP; size -= SPARE_STEP) {
        struct qstill_error ignored = {0};

        if (make_one(vmfd, name, (size_t)size, &ignored) == 0)
            return;
    }
    unlinkat(vmfd, name, 0);
}

void spare_make(int vmfd, size_t layers)
{
    size_t size = SPARE_MIN + SPARE_PER_LAYER * layers;

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        struct qstill_error ignored = {0};

        /* one that is too small is better than none */
        if (make_one(vmfd, names[i], size, &ignored) < 0 &&
            size_of(vmfd, names[i]) == 0)
            unlinkat(vmfd, names[i], 0);
    }
}

void spare_keep(const struct session *s)
{
    size_t layers = s->rec.disk_count + s->rec.hidden_count;

    for (size_t i = 0; i < s->tree.count; i++)
        layers += s->tree.nodes[i].disk_count;
    for (size_t i = 0; i < s->rec.trash_count; i++)
        layers += s->rec.trash[i].layer_count;
    spare_make(s->vmfd, layers);
}

int spare_publish(int vmfd, int dirfd, const char *name, const void *data,
                  size_t len, struct qstill_error *err)
{
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        struct qstill_error why = {0};
        off_t size = size_of(vmfd, names[i]);

        if (size == 0 ||
            publish_with(vmfd, names[i], dirfd, name, data, len, &why) < 0)
            continue;
        make_again(vmfd, names[i], size);
        return err_clear(err);
    }
    return err->code;
}

bool spare_give_up(int vmfd, uint64_t wanted)
{
    struct stat st;

    return faccessat(vmfd, names[1], F_OK, AT_SYMLINK_NOFOLLOW) == 0 &&
           fstatat(vmfd, names[0], &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           (uint64_t)st.st_size >= SPARE_JOURNAL &&
           (uint64_t)st.st_size - SPARE_JOURNAL >= wanted &&
           unlinkat(vmfd, names[0], 0) == 0;
}
