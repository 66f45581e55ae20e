"""Tiny sets in the published formats, and a server that can misbehave, for the tests of fetching and reading them."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RNG = np.random.default_rng(0)
DTYPE = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def python2(value: Any) -> bytes:
    """The opcodes that Python 2 wrote for a value, with byte strings where Python 3 has text."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return b"T" + struct.pack("<i", len(value)) + value.encode()
    shape = python2(value.shape[0]) + python2(value.shape[1]) + b"\x86"
    content = b"T" + struct.pack("<i", value.nbytes) + value.tobytes()
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return start + b"(K\x01" + shape + DTYPE + b"\x89" + content + b"tb"


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + python2(value) + b"."


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def cifar(monkeypatch: Any, dataset: Any, per_batch: int = 20) -> tuple[bytes, dict[str, bytes]]:
    """An archive in CIFAR's format, which torchvision's lists are made to name; and its members."""
    fine = dataset.__name__ == "CIFAR100"
    names = [f"class {n}" for n in range(10)]
    members = {}
    for name, _ in (*dataset.train_list, *dataset.test_list):
        labels = RNG.permutation(np.arange(per_batch) % 10).tolist()
        entry = {"batch_label": name, "data": RNG.integers(0, 256, (per_batch, 3072), dtype=np.uint8)}
        keys = {"fine_labels": labels, "coarse_labels": [0] * per_batch} if fine else {"labels": labels}
        members[name] = pickled({**entry, **keys, "filenames": [f"{n}.png" for n in range(per_batch)]})
    meta = {"fine_label_names": names, "coarse_label_names": ["x"]} if fine else {"label_names": names}
    members[dataset.meta["filename"]] = pickled(meta)
    archive = packed({f"{dataset.base_folder}/{name}": content for name, content in members.items()})
    for attribute in ("train_list", "test_list"):
        found = [[name, md5(members[name])] for name, _ in getattr(dataset, attribute)]
        monkeypatch.setattr(dataset, attribute, found)
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(members[dataset.meta["filename"]])})
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    return archive, members


def packed(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def idx(values: NDArray[np.uint8]) -> bytes:
    return gzip.compress(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


def mnist(monkeypatch: Any, dataset: Any) -> dict[str, bytes]:
    """The four files of a set of MNIST's kind, by their path under the folder of raw files."""
    parts = [
        RNG.integers(0, 256, (40, 28, 28), dtype=np.uint8), np.arange(40, dtype=np.uint8) % 10,
        RNG.integers(0, 256, (10, 28, 28), dtype=np.uint8), np.arange(10, dtype=np.uint8) % 10,
    ]  # fmt: skip
    contents = {name: idx(part) for (name, _), part in zip(dataset.resources, parts, strict=True)}
    monkeypatch.setattr(dataset, "resources", [(name, md5(content)) for name, content in contents.items()])
    return {f"{dataset.__name__}/raw/{name}": content for name, content in contents.items()}


class Server:
    """Serves `files` from a loopback address. `behaviour[path]` is a list of what to do first, one entry a request."""

    def __init__(self, url: str, files: dict[str, bytes]) -> None:
        self.url, self.files = url, files
        self.behaviour: dict[str, list[Any]] = {}
        self.asked: list[str] = []


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/mirror/")
            server.asked.append(path)
            todo = server.behaviour.get(path) or ["whole"]
            what = todo.pop(0) if len(todo) > 1 else todo[0]
            content = server.files.get(path)
            if content is None or isinstance(what, int):
                self.send_error(what if isinstance(what, int) else 404)
                return
            content = what if isinstance(what, bytes) else content
            self.send_response(200)
            if what != "no length":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if what == "truncated" else content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        server = Server(f"http://127.0.0.1:{httpd.server_address[1]}/mirror", files)
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            httpd.shutdown()
            thread.join()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
