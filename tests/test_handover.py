"""A network that is handed over against the original: read back where this package is out of reach."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from sumnas import files, seeding
from sumnas.cli import main
from sumnas.errors import UserError
from sumnas.handover import bundle, mobilenet, nasbench201, retrained
from sumnas.machine import commit_of_code
from sumnas.spaces.base import Architecture, Space
from tests import cells, chains

CELLS = [
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|",
    "|none~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|nor_conv_1x1~2|",  # convolutions of an all-zero node
    "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|",  # a convolution that leads nowhere
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
]
CHAIN, OTHER = "e3k3-e6k7-e3k5-e6k5", "e3k3-e3k3-e3k3-e6k3"

ALONE = """
import json, sys
folder, images = sys.argv[1:]
sys.path.insert(0, folder)
import torch
import network
whole = network.load(folder + "/weights.pt")
assert not whole.training
x = torch.load(images, weights_only=True)
program = torch.export.load(folder + "/network.pt2").module()
logits = {"network.py": whole(x["images"]), "network.pt2": program(x["images"])}
logits["normalised"] = network.normalise(x["bytes"])
torch.save(logits, images + ".out")
assert "sumnas" not in sys.modules
try:
    import sumnas
except ImportError:
    print("no sumnas")
"""
"""Of one folder, in a process of its own."""

FORKS = f"""
import os, sys, traceback
import torch, torch.export

cases, failed = sys.argv[1:], 0
torch.export.load(cases[0] + "/network.pt2")  # imports as much again
for folder, images in zip(cases[::2], cases[1::2]):
    if not (child := os.fork()):
        sys.argv[1:], code = [folder, images], 1
        try:
            exec({ALONE!r}, {{}})
            code = 0
        except BaseException:
            print(folder, traceback.format_exc(), file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    failed |= os.waitpid(child, 0)[1]
sys.exit(failed != 0)
"""
"""ALONE for each folder, in processes that share the import of torch, which takes seconds."""


def trained(space: Space, text: str) -> nn.Module:
    """A network with every value, statistics too, off its initial one."""
    with seeding.scoped(5, text):
        network = space.network(space.decode(text))
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.ndim == 1:
                value.normal_(0.5, 0.5)
            elif value.ndim == 4 and space.candidates == chains.space().candidates:
                value.mul_(4)  # else the logits of a deep chain hardly depend on the images
    return network.eval()


def entry(space: Space, text: str) -> dict[str, Any]:
    architecture = space.decode(text)
    return {
        "architecture": text, "macs": space.macs(architecture), "params": space.params(architecture), "seed": 3,
        "test_accuracy": 61.25, "validation_accuracy": None, "test_top5": 93.5,
    }  # fmt: skip


def one(folder: Path, space: Space, text: str) -> nn.Module:
    """What train_one writes."""
    network, about = trained(space, text), {"space": space.settings.model_dump(mode="json"), "architecture": text}
    files.write_tensors(folder / "weights.safetensors", network.state_dict(), about)
    files.write_json(folder / "metrics.json", {**entry(space, text), "settings_digest": "d1ge57"})
    return network


def several(folder: Path, space: Space, limits: dict[str, list[float | None]]) -> None:
    """What retrain writes."""
    weights = {f"{t}/{name}": v for t in limits for name, v in trained(space, t).state_dict().items()}
    about = {"space": space.settings.model_dump(mode="json"), "keys": "architecture/parameter"}
    files.write_tensors(folder / "weights.safetensors", weights, about)
    networks = [{**entry(space, text), "limits": found} for text, found in limits.items()]
    files.write_json(folder / "metrics.json", {"run": "a-0", "settings_digest": "d1ge57", "networks": networks})


def prepared(folder: Path, space: Space) -> Path:
    s = space.settings
    files.write_json(folder / "manifest.json", {
        "kind": "arrays", "source": "noise", "classes": [str(c) for c in range(s.classes)], "image_size": s.image_size,
        "image_channels": s.image_channels, "mean": [101.5, 99.25][: s.image_channels],
        "std": [51.0, 63.75][: s.image_channels], "counts": {"train": 1200, "validation": 0, "test": 30}, "sha256": {},
    })  # fmt: skip
    return folder


def export(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def complaint(*arguments: object) -> str:
    (line,) = export(*arguments, code=1).stderr.splitlines()
    assert line.startswith("sumnas: error: ")
    return line


def batch(space: Space, count: int = 5) -> Tensor:
    s = space.settings
    shape = (count, s.image_channels, s.image_size, s.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(8))


def alone(cases: Mapping[Path, Tensor]) -> dict[Path, dict[str, Tensor]]:
    """What each folder's files give for its images in a process that finds torch, and not this package."""
    code = bytes(range(256)) * 8
    given, expected = list[str](), dict[Path, Tensor]()
    for folder, images in cases.items():
        values = torch.frombuffer(bytearray(code), dtype=torch.uint8)[: images[:2].numel()]
        n, c, h, w = images[:2].shape
        path = folder.parent / "images"
        torch.save({"images": images, "bytes": values.reshape(n, h, w, c)}, path)
        given += [str(folder), str(path)]
        expected[folder] = (values.reshape(n, h, w, c).float() - PREPARED_MEAN[:c]) / PREPARED_STD[:c]
    site = [path for path in sys.path if path.endswith("site-packages")]
    # An editable install would be found through the site's hooks: with -S they do not run.
    program = f"import sys; sys.path += {site!r}\n{FORKS}"
    # One thread, as in the tests: threads of before the fork would be missing after it.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-S", "-c", program, *given]
    said = subprocess.run(command, cwd=next(iter(cases)).parent, env=env, capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout == "no sumnas\n" * len(cases), said.stderr
    found = dict[Path, dict[str, Tensor]]()
    for folder in cases:
        found[folder] = torch.load(folder.parent / "images.out", weights_only=True)
        torch.testing.assert_close(found[folder]["normalised"], expected[folder].permute(0, 3, 1, 2))
    return found


PREPARED_MEAN, PREPARED_STD = torch.tensor([101.5, 99.25]), torch.tensor([51.0, 63.75])


CASES: dict[str, tuple[Space, str]] = {
    "cells": (cells.space(channels=2, cells=2, image_channels=2), CELLS[0]),
    "zeros": (cells.space(channels=2, image_channels=1, affine=False), CELLS[1]),
    "chain": (chains.space(), CHAIN),
    "no-gate": (chains.space(se_ratio=0.0, stem_stride=2, image_size=9), CHAIN),
}


class Handed(NamedTuple):
    """An export of one of CASES, and what its files give for the images without this package."""

    folder: Path
    names: set[str]
    said: Result
    expected: Tensor
    found: dict[str, Tensor]


@pytest.fixture(scope="module")
def handed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Handed]:
    made = dict[str, tuple[Path, set[str], Result, Tensor]]()
    for name, (space, text) in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        network = one(folder / "one", space, text)
        data = prepared(folder / "data", space)
        arguments = ("-o", folder / "out", "--prepared", data, "--no-onnx", *(["--json"] if name == "cells" else []))
        said = export(folder / "one", *arguments)
        names = {path.name for path in (folder / "out").iterdir()}  # before Python compiles what it loads
        with torch.no_grad():
            made[name] = (folder / "out", names, said, network(batch(space)))
    found = alone({made[name][0]: batch(space) for name, (space, _) in CASES.items()})
    return {name: Handed(*of, found[of[0]]) for name, of in made.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_files_give_the_same_logits_without_this_package(case: str, handed: dict[str, Handed]) -> None:
    folder, names, said, expected, found = handed[case]
    assert said.stderr == ""
    if case == "cells":
        told = json.loads(said.stdout)
        assert told["path"] == str(folder) and set(told["differences"]) == {"network.py", "network.pt2"}
    else:
        assert said.stdout.startswith("network.py, network.pt2: differ by at most ")
    assert names == {"network.py", "weights.pt", "network.pt2", "MODEL_CARD.md"}
    for name in ("network.py", "network.pt2"):
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
    assert expected.std(0).min() > 3e-4 or case == "zeros"  # the logits say something of the images
    with zipfile.ZipFile(folder / "network.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    # Nor a folder of this machine: that of torch, whose modules ran, stands for all.
    words = (b"sumnas", str(folder.parent).encode(), str(torch.__path__[0]).encode())
    assert all(word not in content for word in words)


def test_every_kind_of_cell_is_written(tmp_path: Path) -> None:
    space = cells.space(channels=2)
    data = prepared(tmp_path / "data", space)
    manifest = bundle.read_manifest(data)
    chosen: list[Architecture] = [space.decode(text) for text in CELLS] + cells.sample(60)
    for architecture in chosen:
        network = trained(space, space.encode(architecture))
        found = retrained.Retrained(space, architecture, network, {}, "")
        namespace: dict[str, Any] = {"__name__": "network"}
        exec(bundle.source(found, manifest), namespace)
        copy = namespace["Network"]()
        renamed = {name: nasbench201.renamed(name, architecture) for name in network.state_dict()}
        copy.load_state_dict({new: network.state_dict()[name] for name, new in renamed.items() if new})
        assert torch.equal(copy.eval()(batch(space)), network(batch(space)))
        # What is left out moves no logit; in the last cell, behind which nothing cuts it off, nothing else is.
        assert all(new is not None or ".edges." in name for name, new in renamed.items())
        dead = [p for name, p in network.named_parameters() if renamed[name] is None]
        alive = [p for name, p in network.named_parameters() if renamed[name] and name.startswith("body.4.")]
        alive.append(network.classifier.bias)
        logits = network.train()(batch(space)).square().sum()
        grads = torch.autograd.grad(logits, [*dead, *alive], allow_unused=True)
        assert all(g is None for g in grads[: len(dead)]) and all(g is not None for g in grads[len(dead) :])


def test_the_card_says_where_it_comes_from(tmp_path: Path) -> None:
    space = cells.space(channels=2)
    one(tmp_path / "one", space, CELLS[2])
    data = prepared(tmp_path / "data", space)
    export(tmp_path / "one", "-o", tmp_path / "out", "--prepared", data, "--no-onnx")
    text = (tmp_path / "out/MODEL_CARD.md").read_text(encoding="utf-8")
    rows = dict(line[2:-2].split(" | ", 1) for line in text.splitlines() if line.startswith("| "))
    assert rows["architecture"] == "`" + CELLS[2].replace("|", "\\|") + "`"
    total = sum(p.numel() for p in space.network(space.decode(CELLS[2])).parameters())
    weights = torch.load(tmp_path / "out/weights.pt", weights_only=True)
    held = sum(v.numel() for n, v in weights.items() if "running" not in n and "num_batches" not in n)
    assert rows["parameters"] == f"{total / 1e6:.6g} million" and held < total
    assert rows["parameters in the files here"].startswith(f"{held:,}; {total - held:,} more")
    assert rows["multiply-adds of one image"] == f"{space.macs(space.decode(CELLS[2])):.6g} million"
    assert rows["test accuracy"] == "61.25 %" and rows["validation accuracy"] == "no such split"
    assert rows["test accuracy, top-5"] == "93.50 %"
    assert rows["images"] == "1,200 train, 0 validation, 30 test" and rows["mean (of values 0 to 255)"] == "101.5"
    assert rows["digest of the training's settings"] == "d1ge57" and rows["seed of the training"] == "3"
    digest = hashlib.sha256((data / "manifest.json").read_bytes()).hexdigest()
    assert rows["SHA-256 of the data's manifest.json"].startswith(f"{digest}; that of the training is not known")
    assert rows["commit that wrote this folder"] == (commit_of_code() or "not known: no git checkout")
    noted = (rows["commit that trained it"], rows["digest of all of params.yaml"])
    assert all(text.startswith("not noted") for text in noted)  # without a run.json
    assert float(rows["network.py"]) == 0 and float(rows["network.pt2"]) <= 1e-6


def test_the_card_has_what_the_training_noted_and_other_data_is_refused(tmp_path: Path) -> None:
    space, data = chains.space(), prepared(tmp_path / "data", chains.space())
    several(tmp_path / "run", space, {CHAIN: [None, 0.5]})
    digest = hashlib.sha256((data / "manifest.json").read_bytes()).hexdigest()
    metrics = files.read_json(tmp_path / "run/metrics.json")
    files.write_json(tmp_path / "run/metrics.json", {**metrics, "data_digest": digest, "cost": "macs"})
    files.write_json(tmp_path / "run/run.json", {"commit": "c0ffee-dirty", "params_digest": "a11"})
    export(tmp_path / "run", "-o", tmp_path / "out", "--prepared", data, "--no-onnx")
    text = (tmp_path / "out/MODEL_CARD.md").read_text(encoding="utf-8")
    rows = dict(line[2:-2].split(" | ", 1) for line in text.splitlines() if line.startswith("| "))
    assert rows["commit that trained it"] == "c0ffee-dirty" and rows["digest of all of params.yaml"] == "a11"
    assert rows["SHA-256 of the data's manifest.json"] == digest
    assert rows["found under limits of macs"] == "unlimited, 0.5M"
    # Prepared again with another mean: every comparison of logits would still hold.
    other = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**other, "mean": [3.0] * len(other["mean"])}))
    said = complaint(tmp_path / "run", "-o", tmp_path / "again", "--prepared", data, "--no-onnx")
    assert "not the data that the network was trained on" in said and not (tmp_path / "again").exists()


def test_one_of_several_is_named_by_its_limit_or_string(tmp_path: Path) -> None:
    space = chains.space()
    several(tmp_path / "run", space, {CHAIN: [None, 0.5], OTHER: [0.25]})
    for which, text in (("none", CHAIN), ("0.5", CHAIN), ("0.25", OTHER), (OTHER, OTHER)):
        found = retrained.load(tmp_path / "run", which)
        assert space.encode(found.architecture) == text
        assert torch.equal(found.network(batch(space)), trained(space, text)(batch(space)))
    assert f"has 2 networks; name one with --network, by limit or string: none or 0.5 or {CHAIN}; 0.25 or {OTHER}" in (
        complaint(tmp_path / "run", "-o", tmp_path / "out")
    )
    assert "--network 7: not in" in complaint(tmp_path / "run", "-o", tmp_path / "out", "--network", "7")
    several(tmp_path / "none", space, {})
    assert "retrain.enabled was false" in complaint(tmp_path / "none", "-o", tmp_path / "out")


def test_mistakes_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = chains.space()
    network, data = one(tmp_path / "one", space, CHAIN), prepared(tmp_path / "data", space)
    rest = ["--prepared", data, "--no-onnx"]
    before = sorted(tmp_path.iterdir())
    new = ["-o", tmp_path / "out", *rest]
    assert "weights.safetensors" in complaint(tmp_path / "data", *new) or "metrics.json" in complaint(data, *new)
    assert f"{tmp_path / 'one'}: is there already" in complaint(tmp_path / "one", "-o", tmp_path / "one", *rest)
    assert "manifest.json: no such file" in complaint(tmp_path / "one", *new[:2], "--prepared", tmp_path)
    other = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**other, "image_size": 5}))
    assert "the data has image_size 5, the network 4" in complaint(tmp_path / "one", *new)
    (data / "manifest.json").write_text(json.dumps(other))
    # A generated definition that computes something else, or that lacks a layer.
    definition = mobilenet.definition
    for old, changed, says in (
        (".mean((2, 3)))", ".mean((2, 3)) * 1.001)", "network.py: its logits differ from the original network's by"),
        ("self.head = ", "self.tail = self.head = ", "network.py: does not take its weights"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(mobilenet, "definition", lambda *a, o=old, c=changed: definition(*a).replace(o, c))
            assert says in complaint(tmp_path / "one", *new)
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert f"{tmp_path / 'out'}: No space left" in complaint(tmp_path / "one", *new)
    weights = network.state_dict() | {"classifier.bias": torch.full((3,), float("nan"))}
    about = {"space": space.settings.model_dump(mode="json"), "architecture": CHAIN}
    files.write_tensors(tmp_path / "one/weights.safetensors", weights, about)
    assert "differ from the original network's by nan" in complaint(tmp_path / "one", *new)
    del weights["classifier.bias"]
    files.write_tensors(tmp_path / "one/weights.safetensors", weights, about)
    assert "not the network that metrics.json beside it tells of" in complaint(tmp_path / "one", *new)
    assert sorted(tmp_path.iterdir()) == before


def test_a_space_without_a_writer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    space = chains.space()
    found = retrained.Retrained(space, (0, 0, 0, 0), trained(space, "e3k3-e3k3-e3k3-e3k3"), {}, "")
    monkeypatch.setattr(space, "settings", space.settings.model_copy(update={"name": "unheard"}))
    with pytest.raises(UserError, match=r"space 'unheard': nothing writes .* add sumnas/handover/unheard.py"):
        bundle._weights(found)


def test_without_its_packages_onnx_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = chains.space()
    one(tmp_path / "one", space, CHAIN)
    data = prepared(tmp_path / "data", space)
    monkeypatch.setattr(bundle, "ONNX_NEEDS", ("unheard_of",))
    arguments = (tmp_path / "one", "-o", tmp_path / "out", "--prepared", data)
    assert "--onnx: needs further packages: pip install unheard_of" in complaint(*arguments, "--onnx")
    assert not (tmp_path / "out").exists()
    (note,) = export(*arguments).stderr.splitlines()
    assert note == "sumnas: note: no network.onnx, which needs further packages: pip install unheard_of"
    assert (tmp_path / "out/network.pt2").exists() and not (tmp_path / "out/network.onnx").exists()


@pytest.mark.skipif(bool(bundle.missing_for_onnx()), reason=f"not installed: {', '.join(bundle.missing_for_onnx())}")
@pytest.mark.parametrize(
    ("space", "text"),
    [(cells.space(channels=2), CELLS[0]), (chains.space(), CHAIN)],
    ids=["cells", "chain"],
)
def test_onnx_gives_the_same_logits(tmp_path: Path, space: Space, text: str) -> None:
    import onnxruntime

    network = one(tmp_path / "one", space, text)
    data = prepared(tmp_path / "data", space)
    said = export(tmp_path / "one", "-o", tmp_path / "out", "--prepared", data, "--onnx")
    assert said.stderr == "" and said.stdout.startswith("network.py, network.pt2, network.onnx: differ")
    session = onnxruntime.InferenceSession(str(tmp_path / "out/network.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 7):
        images = batch(space, count)
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), network(images), rtol=1e-5, atol=1e-5)
    content = (tmp_path / "out/network.onnx").read_bytes()
    # Nor a folder of this machine: that of torch, whose modules ran, stands for all.
    assert all(word not in content for word in (b"sumnas", str(tmp_path).encode(), str(torch.__path__[0]).encode()))
    assert "| network.onnx | " in (tmp_path / "out/MODEL_CARD.md").read_text(encoding="utf-8")
