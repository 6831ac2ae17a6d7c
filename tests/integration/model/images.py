# SPDX-License-Identifier: MIT
"""What a guest would read from a chain of images, found without the product
and without qemu-img, so that thousands of chains can be read in a minute. The
qcow2 parser is the one that the qcow2 engine's tests recount with."""

import os

from qcow2 import qimage


class Layer:
    """One image file, whole, with the clusters that it holds itself."""

    def __init__(self, path, fmt):
        self.path = path
        self.backing = self.backing_format = None
        self.problems = []
        if fmt == "raw":
            with open(path, "rb") as f:
                data = f.read()
            self.size, self.pieces = len(data), {0: data}
            return
        image = qimage.Image(path)
        self.size = image.size
        self.backing = image.backing_path()
        self.backing_format = image.backing_format
        if image.incompat:
            self.problems.append("incompatible bits %#x" % image.incompat)
        self.problems += image.problems()
        self.pieces = {}
        zeros = bytes(image.cs)
        for i, e in enumerate(image.l1()):
            if not e & qimage.OFFSET:
                continue
            for j, (w, _) in enumerate(image.l2(e & qimage.OFFSET)):
                start = (i * image.l2_entries + j) * image.cs
                at = w & qimage.OFFSET
                if w & qimage.COMPRESSED:
                    raise ValueError("%s: compressed" % path)
                if w & 1:
                    self.pieces[start] = zeros
                elif at:
                    data = image.raw[at:at + image.cs]
                    self.pieces[start] = data + zeros[len(data):]


class Reader:
    """Layers are kept as long as their files have not changed."""

    def __init__(self):
        self.known = {}

    def forget(self):
        self.known = {}

    def layer(self, path, fmt):
        st = os.stat(path)
        key = (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns,
               st.st_ctime_ns, fmt)
        known = self.known.get(path)
        if known is None or known[0] != key:
            known = self.known[path] = (key, Layer(path, fmt))
        return known[1]

    def chain(self, path, fmt):
        """Top first."""
        out = []
        while path:
            if len(out) > 400:
                raise ValueError("%s: no end of its chain" % path)
            layer = self.layer(path, fmt)
            out.append(layer)
            path, fmt = layer.backing, layer.backing_format
        return out

    def content(self, path, fmt):
        chain = self.chain(path, fmt)
        size = chain[0].size
        out = bytearray(size)
        for i in range(len(chain) - 1, -1, -1):
            layer = chain[i]
            # What a layer does not reach reads as zeros above it.
            if layer.size < size:
                out[layer.size:] = bytes(size - layer.size)
            for start, data in layer.pieces.items():
                end = min(start + len(data), size, layer.size)
                if start < end:
                    out[start:end] = data[:end - start]
        return bytes(out)

    def problems(self):
        return ["%s: %s" % (path, p) for path, (_, layer) in
                self.known.items() if os.path.exists(path)
                for p in layer.problems]
