"""The folder that is handed over: every form of the network checked against the original, written whole or not at all.

What is exported is the generated module, whose file needs nothing but torch, so no trace of this package is left in it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import io
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sumnas import files, seeding
from sumnas.errors import UserError
from sumnas.handover import card
from sumnas.handover.retrained import Retrained
from sumnas.manifest import NAME, Manifest
from sumnas.manifest import read as read_manifest

ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")
"""Packages that write and run network.onnx; the extra `export` installs them."""
TOLERANCE = {"network.py": 1e-6, "network.pt2": 1e-6, "network.onnx": 1e-4}
"""Largest difference of logits that is rounding, as a share of the largest logit where that is above 1.

The first two run the original's own operations; ONNX Runtime has kernels of its own, which sum in another order.
"""
TRACED, BATCHES = 4, (1, 3, 8)
"""Images of the batch that exporters see, and of those that are compared: a fixed batch size would be noticed."""

HEAD = '''"""{architecture}

    from network import load, normalise
    network = load("weights.pt")       # in evaluation mode
    logits = network(normalise(x))     # x: [N, {size}, {size}, {image_channels}] uint8, values 0 to 255
"""

import torch
import torch.nn.functional as F
from torch import nn

MEAN = {mean}
STD = {std}
"""Per channel of values 0 to 255: what the network was trained with."""


'''
"""How network.py begins: a template for `str.format`."""

TAIL = '''

def normalise(images):
    """[N, H, W, C] uint8 -> [N, C, H, W] float32, as the network was trained."""
    images = (images.float() - torch.tensor(MEAN, device=images.device)) / torch.tensor(STD, device=images.device)
    return images.permute(0, 3, 1, 2)


def load(path="weights.pt"):
    """Return the trained network in evaluation mode, on the CPU."""
    network = Network()
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return network.eval()
'''
"""How network.py ends: the functions that normalise images and load the weights, as they are."""


def missing_for_onnx() -> list[str]:
    """Return the packages that ONNX needs and that are not installed."""
    return [name for name in ONNX_NEEDS if importlib.util.find_spec(name) is None]


def write(found: Retrained, prepared: Path, output: Path, *, onnx: bool) -> dict[str, float]:
    """Write all forms and the card into the new folder `output`; return each form's largest difference of logits.

    UserError where `output` is there already, the prepared data does not fit the network, a form cannot be made, or
    one gives other logits than the original: then nothing is left.
    """
    manifest = read_manifest(prepared)
    _check_fits(found, manifest, prepared)
    with _new_folder(output) as folder:
        (folder / "network.py").write_text(source(found, manifest), encoding="utf-8")
        torch.save(_weights(found), folder / "weights.pt")
        network = _module(folder)
        forms: dict[str, Callable[[Tensor], Tensor]] = {"network.py": network}
        forms["network.pt2"] = _made("network.pt2", lambda: _pt2(network, folder / "network.pt2", _images(found)))
        if onnx:
            forms["network.onnx"] = _made(
                "network.onnx", lambda: _onnx(network, folder / "network.onnx", _images(found))
            )
        differences = {name: _difference(found, name, form) for name, form in forms.items()}
        parameters = sum(parameter.numel() for parameter in network.parameters())
        text = card.text(found, manifest, files.sha256(prepared / NAME), differences, parameters, max(BATCHES))
        (folder / card.NAME).write_text(text, encoding="utf-8")
    return differences


def source(found: Retrained, manifest: Manifest) -> str:
    """Return network.py: the definition of exactly this architecture, in plain torch."""
    settings = found.space.settings
    head = HEAD.format(
        architecture=found.space.encode(found.architecture), size=settings.image_size,
        image_channels=settings.image_channels, mean=manifest.mean, std=manifest.std,
    )  # fmt: skip
    definition: str = _writer(found).definition(settings, found.architecture)
    if "F." not in definition:
        head = head.replace("import torch.nn.functional as F\n", "")
    return head + definition + TAIL


def _writer(found: Retrained) -> Any:
    """Return the module that writes networks of this space; it has `definition` and `renamed`."""
    name = found.space.settings.name
    if importlib.util.find_spec(f"sumnas.handover.{name}") is None:
        raise UserError(
            f"space {name!r}: nothing writes its networks as plain torch; add sumnas/handover/{name}.py with "
            "`definition` and `renamed`, as mobilenet.py there"
        )
    return importlib.import_module(f"sumnas.handover.{name}")


def _weights(found: Retrained) -> dict[str, Tensor]:
    writer, named = _writer(found), dict[str, Tensor]()
    for name, tensor in found.network.state_dict().items():
        if (new := writer.renamed(name, found.architecture)) is not None:
            named[new] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return named


def _module(folder: Path) -> nn.Module:
    """Run network.py as a file of no folder, so that no path of this machine enters an export."""
    namespace: dict[str, Any] = {"__name__": "network"}
    exec(compile((folder / "network.py").read_text(encoding="utf-8"), "network.py", "exec"), namespace)
    try:
        network: nn.Module = namespace["load"](folder / "weights.pt")
    except RuntimeError as error:  # names that do not match
        raise UserError(f"network.py: does not take its weights ({_first_line(error)}); nothing was written") from None
    return network


def _program(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Return the network for any number of images, without the traces that name folders of this machine."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _pt2(network: nn.Module, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    torch.export.save(_program(network, images), path)
    reloaded: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return reloaded


def _onnx(network: nn.Module, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    torch.onnx.export(
        _program(network, images), (), path, dynamo=True, external_data=False, verbose=False, optimize=True,
        input_names=["images"], output_names=["logits"],
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _made(name: str, make: Callable[[], Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Make a form without the exporters' remarks; what they cannot do becomes a UserError."""
    stream = io.StringIO()
    try:
        with warnings.catch_warnings(), _silent(), contextlib.redirect_stdout(stream):
            warnings.simplefilter("ignore")
            return make()
    except OSError:
        raise
    except Exception as error:  # exporters have many kinds of their own
        raise UserError(f"{name}: torch {torch.__version__} cannot write it ({_first_line(error)})") from None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@torch.no_grad()
def _difference(found: Retrained, name: str, form: Callable[[Tensor], Tensor]) -> float:
    """Return the largest difference of logits over random batches; UserError where it is more than rounding."""
    worst = 0.0
    for size in BATCHES:
        images = _images(found, size)
        expected, logits = found.network(images), form(images)
        difference = float((logits - expected).abs().max()) if logits.shape == expected.shape else math.inf
        if not difference <= TOLERANCE[name] * max(1.0, float(expected.abs().max())):  # also where it is not a number
            raise UserError(
                f"{name}: its logits differ from the original network's by {difference:.3g}; nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _images(found: Retrained, size: int = TRACED) -> Tensor:
    """[size, C, H, W] random images, always the same."""
    s = found.space.settings
    shape = (size, s.image_channels, s.image_size, s.image_size)
    return torch.randn(shape, generator=seeding.torch_stream(0, "handover", size))


def _check_fits(found: Retrained, manifest: Manifest, prepared: Path) -> None:
    settings = found.space.settings
    for key, value in (
        ("image_size", manifest.image_size), ("image_channels", manifest.image_channels),
        ("classes", len(manifest.classes)),
    ):  # fmt: skip
        if getattr(settings, key) != value:
            raise UserError(
                f"{prepared / NAME}: the data has {key} {value}, the network {getattr(settings, key)}; name the "
                "prepared data that it was trained on with --prepared"
            )
    # Another mean and deviation would be handed over with the network, and no comparison of logits would tell.
    if found.data_digest not in (None, files.sha256(prepared / NAME)):
        raise UserError(
            f"{prepared / NAME}: not the data that the network was trained on, which was prepared with other settings "
            "or from other files; name that folder with --prepared, or prepare it again as it was (block data)"
        )


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder beside `output`, and rename it at the end; where something fails, nothing is left."""
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise UserError(f"{output}: is there already; delete it, or name another folder with -o")
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.", suffix=".part"))
    try:
        yield folder
        for path in folder.iterdir():
            path.chmod(0o644)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        folder.chmod(0o755)  # mkdtemp makes it private to its owner
        os.replace(folder, output)
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(output)) from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
