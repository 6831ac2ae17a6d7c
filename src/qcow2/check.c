/* SPDX-License-Identifier: MIT */
#include "check.h"

int qcow2_check(struct image *img, struct refs_report *report,
                struct qstill_error *err)
{
    CLEANUP(refs_fini) struct refs refs = {0};
    CLEANUP(refblocks_fini) struct refblocks stored = {0};
    CLEANUP(aio_closep) struct aio *aio = NULL;

    if (!image_is_qcow2(img))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s is raw: there is nothing to check", img->path);
    if (img->info.header.incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s keeps its data in an external data file", img->path);
    if (aio_open(&aio, img->io, NULL, err) < 0 ||
        refs_count(img, aio, &refs, &stored, report, err) < 0)
        return err->code;
    refs_compare(img, &refs, &stored, report);
    return report->nomem ? err_nomem(err) : 0;
}
