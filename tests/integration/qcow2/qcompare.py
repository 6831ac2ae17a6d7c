# SPDX-License-Identifier: MIT
"""`qstill image info|map|check|compare` against qemu-img, and a merge's
result against what stood before. Each function returns a list of complaints;
an empty list is agreement."""

import os

import qimage
import qtools

INFO_KEYS = ("virtual-size", "format", "cluster-size", "backing-filename",
             "backing-filename-format", "dirty-flag")
DATA_KEYS = ("compat", "lazy-refcounts", "refcount-bits", "corrupt",
             "extended-l2", "compression-type", "data-file", "data-file-raw")
CHECK_KEYS = ("total-clusters", "allocated-clusters", "compressed-clusters",
              "fragmented-clusters", "image-end-offset")


def encryption(data):
    """What newer ones say of a LUKS header elsewhere cannot be in qcow2."""
    e = dict(data["encrypt"]) if "encrypt" in data else None
    if e and e.pop("detached-header", False):
        raise AssertionError("a LUKS header that is not in the image")
    return e


def same_info(path, fmt):
    ours = qtools.image("info", "--format", fmt, path)
    theirs, want = qtools.qemu_json("info", "--output=json", "-f", fmt, path)
    if theirs.rc or ours.rc:
        return [] if theirs.rc and ours.rc else [str(ours), str(theirs)]
    got, bad = ours.json(), []
    for k in INFO_KEYS:
        if got.get(k) != want.get(k):
            bad.append("info %s: %s is %r, qemu-img says %r" %
                       (path, k, got.get(k), want.get(k)))
    mine = got.get("format-specific", {}).get("data", {})
    data = want.get("format-specific", {}).get("data", {})
    for k in DATA_KEYS:
        if mine.get(k) != data.get(k):
            bad.append("info %s: %s is %r, qemu-img says %r" %
                       (path, k, mine.get(k), data.get(k)))
    if got.get("snapshots") != want.get("snapshots"):
        bad.append("info %s: snapshots %r, qemu-img says %r" % (
            path, got.get("snapshots"), want.get("snapshots")))
    if mine.get("encrypt") != encryption(data):
        bad.append("info %s: encrypt %r" % (path, mine.get("encrypt")))

    def bitmaps(d):
        return [(b["name"], b["granularity"], sorted(b["flags"]))
                for b in d.get("bitmaps", [])]
    if bitmaps(mine) != bitmaps(data):
        bad.append("info %s: bitmaps %r, qemu-img says %r" %
                   (path, mine.get("bitmaps"), data.get("bitmaps")))
    return bad


def normal_map(entries, loose_zero):
    """Joins what may be split; forgets the hole detection inside allocated
    clusters (`loose_zero`), which QEMU does only for some files."""
    out = []
    for e in entries:
        e = {k: e.get(k) for k in ("start", "length", "depth", "present",
                                   "zero", "data", "compressed", "offset")}
        e.pop("compressed")  # newer than QEMU 7.2
        if loose_zero and e["data"]:
            e["zero"] = False
        last = out[-1] if out else None
        if last and last["start"] + last["length"] == e["start"] and all(
                last[k] == e[k] for k in ("depth", "present", "zero",
                                          "data")) and (
                last["offset"] is None) == (e["offset"] is None) and (
                e["offset"] is None or
                last["offset"] + last["length"] == e["offset"]):
            last["length"] += e["length"]
        else:
            out.append(e)
    return out


def same_map(path, fmt, loose_zero=False):
    ours = qtools.image("map", "--format", fmt, path)
    theirs, want = qtools.qemu_json("map", "--output=json", "-f", fmt, path)
    if ours.rc or theirs.rc:
        return [] if theirs.rc and ours.rc else [str(ours), str(theirs)]
    got = normal_map(ours.json(), loose_zero)
    want = normal_map(want, loose_zero)
    if got == want:
        return []
    for a, b in zip(got + [None], want + [None]):
        if a != b:
            return ["map %s: %r, qemu-img says %r" % (path, a, b)]
    return ["map %s differs" % path]


def same_check(path):
    ours = qtools.image("check", path)
    theirs, want = qtools.qemu_json("check", "--output=json", "-f", "qcow2",
                                    path)
    if want is None or not ours.out.strip().startswith("{"):
        return [] if want is None and ours.rc else [str(ours), str(theirs)]
    got, bad = ours.json(), []
    for k in CHECK_KEYS:
        if got.get(k, 0) != want.get(k, 0):
            bad.append("check %s: %s is %r, qemu-img says %r" %
                       (path, k, got.get(k), want.get(k)))
    for k in ("corruptions", "leaks", "check-errors"):
        if bool(got.get(k, 0)) != bool(want.get(k, 0)):
            bad.append("check %s: %s is %r, qemu-img says %r" %
                       (path, k, got.get(k), want.get(k)))
    if got.get("leaks", 0) != want.get("leaks", 0):
        bad.append("check %s: %r leaks, qemu-img says %r" %
                   (path, got.get("leaks"), want.get("leaks")))
    clean = not want.get("corruptions") and not want.get("check-errors")
    if (ours.rc == 0) != (clean and not want.get("leaks")) and \
            ours.rc not in (0, 3):
        bad.append(str(ours))
    if not clean and ours.rc != 3:
        bad.append("check %s: exit %d on damage" % (path, ours.rc))
    return bad


# ------------------------------------------------------------ after a merge

def survived(before, kept_bitmaps=None, bitmaps_dropped=0):
    """Complaints about one surviving file; `before` is its FileState. When
    the merge said that it dropped bitmaps, some may be gone."""
    path, fmt = before.path, before.fmt
    if not os.path.exists(path):
        return ["%s is gone" % path]
    st = os.lstat(path)
    bad = []
    if (st.st_uid, st.st_gid) != before.owner:
        bad.append("%s: owner is %d:%d, was %d:%d" % (
            (path, st.st_uid, st.st_gid) + before.owner))
    if st.st_mode != before.mode:
        bad.append("%s: mode is %o, was %o" % (path, st.st_mode, before.mode))
    if qtools.xattrs(path) != before.xattrs:
        bad.append("%s: xattrs are %r, were %r" % (
            path, qtools.xattrs(path), before.xattrs))
    if qtools.flags(path) != before.flags:
        bad.append("%s: flags are %#x, were %#x" % (
            path, qtools.flags(path), before.flags))
    if qtools.file_hash(path) == before.bytes and kept_bitmaps is None:
        return bad
    try:
        view = qtools.guest_hash(path, fmt)
    except RuntimeError as e:
        return bad + ["%s cannot be read: %s" % (path, e)]
    if view != before.view:
        bad.append("%s: the guest's content changed" % path)
    if fmt == "qcow2":
        bad += _survived_qcow2(before, kept_bitmaps or {}, bitmaps_dropped)
    elif st.st_size != before.size:
        bad.append("%s: size changed" % path)
    return bad


def _survived_qcow2(before, merged_bitmaps, bitmaps_dropped):
    path, bad = before.path, []
    img = qimage.Image(path)
    if img.size // 512 * 512 != before.size:
        bad.append("%s: virtual size is %d, was %d" % (path, img.size,
                                                       before.size))
    check = qtools.qemu_check(path)
    if check != (0, 0, 0):
        bad.append("%s: qemu-img check says %r" % (path, check))
    bad += ["%s: %s" % (path, p) for p in img.problems()[:5]]
    if img.autoclear & ~1:
        bad.append("%s: unknown autoclear bits %#x were kept by a writer" %
                   (path, img.autoclear))
    now = {s.id.decode(): s.name for s in img.snapshots()}
    for sid, (name, view) in before.snapshots.items():
        if now.get(sid) != name:
            bad.append("%s: internal snapshot %r is gone" % (path, name))
        elif qtools.guest_hash(path, "qcow2", sid) != view:
            bad.append("%s: internal snapshot %r changed" % (path, name))
    bad += _bitmaps(img, before, merged_bitmaps, bitmaps_dropped)
    return bad


def _bitmaps(img, before, merged, dropped):
    """`merged`: the states of the dropped layers below, nearest first. A
    bitmap that is there and not in use must cover what it stands for."""
    bad = []
    there = {b.name for b in img.bitmaps()}
    if not dropped:
        for s in [before] + list(merged or ()):
            bad += ["%s: bitmap %s of %s is gone" % (img.path, n, s.path)
                    for n in set(s.bitmaps) - there]
    layers = [before] + list(merged or ())
    for b in img.bitmaps():
        having = [i for i, s in enumerate(layers) if b.name in s.bitmaps]
        if not having:
            bad.append("%s: bitmap %s is of nobody" % (img.path, b.name))
        elif b.in_use != any(layers[i].bitmaps[b.name][0] for i in having):
            bad.append("%s: bitmap %s: in use is %r" % (img.path, b.name,
                                                        b.in_use))
        elif not b.in_use:
            # down from where it began: all that was written above its layer
            need = [r for s in layers[:having[-1]] for r in s.allocated]
            for i in having:
                need += layers[i].bitmaps[b.name][1]
            if not qtools.covers(img.bitmap_ranges(b), cut(need, img.size)):
                bad.append("%s: bitmap %s misses what a merged layer wrote" %
                           (img.path, b.name))
    return bad


def cut(ranges, size):
    return [(a, min(b, size)) for a, b in ranges if a < size]
