"""MODEL_CARD.md: what a network is, how well it does, where it comes from and how it is loaded."""

from __future__ import annotations

import platform
from typing import Any

import torch

from sumnas import machine
from sumnas.handover.retrained import Retrained
from sumnas.manifest import SPLITS, Manifest
from sumnas.shown import limit_name, measured

NAME = "MODEL_CARD.md"
"""The card's file name."""

FORMS = {
    "network.py": 'from network import load\nnetwork = load("weights.pt")',
    "network.pt2": 'import torch\nnetwork = torch.export.load("network.pt2").module()',
    "network.onnx": 'import onnxruntime\nsession = onnxruntime.InferenceSession("network.onnx")\n'
    '(logits,) = session.run(None, {"images": images.numpy()})',
}
"""Code that loads the network and, for ONNX, runs it, by the file that it reads."""


def text(
    found: Retrained, manifest: Manifest, data_digest: str, differences: dict[str, float], parameters: int, batch: int
) -> str:
    """Return the card. `differences` has each form's largest difference of logits, `parameters` counts network.py's."""
    settings, entry = found.space.settings, found.entry
    limits = ", ".join(limit_name(limit, found.cost) for limit in entry.get("limits", []))
    size = settings.image_size
    counts = sorted(manifest.counts.items(), key=lambda item: SPLITS.index(item[0]))
    facts: list[tuple[str, Any]] = [
        ("architecture", f"`{_cell(found.space.encode(found.architecture))}`"),
        ("space", settings.name),
        ("multiply-adds of one image", f"{entry['macs']:.6g} million"),
        ("parameters", f"{entry['params']:.6g} million"),
        ("parameters in the files here", f"{parameters:,}{_without(parameters, entry['params'])}"),
        ("test accuracy", f"{entry['test_accuracy']:.2f} %"),
        *([("test accuracy, top-5", _percent(entry["test_top5"]))] if entry.get("test_top5") is not None else []),
        ("validation accuracy", _percent(entry["validation_accuracy"])),
        *([(f"found under limits of {measured(found.cost) or found.cost}", limits)] if limits else []),
    ]
    data = [
        ("source", _cell(manifest.source)),
        ("images", ", ".join(f"{count:,} {name}" for name, count in counts)),
        ("classes", len(manifest.classes)),
        ("input", f"[N, {settings.image_channels}, {size}, {size}] float32"),
        ("mean (of values 0 to 255)", ", ".join(map(str, manifest.mean))),
        ("std", ", ".join(map(str, manifest.std))),
    ]
    origin = [
        ("commit that trained it", found.made.get("commit") or "not noted: no git checkout, or run.json is gone"),
        ("commit that wrote this folder", machine.commit_of_code() or "not known: no git checkout"),
        ("digest of the training's settings", found.digest),
        ("digest of all of params.yaml", found.made.get("params_digest") or "not noted: run.json is gone"),
        ("SHA-256 of the data's manifest.json", data_digest + _checked(found)),
        ("seed of the training", entry["seed"]),
        ("written with", f"torch {torch.__version__}, Python {platform.python_version()}"),
    ]
    checks = [(name, f"{value:.3g}") for name, value in differences.items()]
    how = [f"`{name}`:\n\n```python\n{FORMS[name]}\n```\n" for name in differences]
    return "\n".join([
        "# Model card", "", "Trained from scratch on the training split; accuracies are on the splits named.", "",
        *_table("network", "", facts),
        "## Data", "", *_table("data", "", data),
        "Normalise as `(x - mean) / std` per channel, x from 0 to 255; `normalise` in network.py takes `[N, H, W, C]` "
        "bytes and gives the input above.", "",
        "## Provenance", "", *_table("what", "value", origin),
        "## Checks", "",
        f"Each form ran the same random batches of up to {batch} images as the original network; the largest "
        "absolute difference of logits:", "",
        *_table("file", "difference", checks),
        "## How to load it", "", *how,
        "All are in evaluation mode and take any batch size. weights.pt is a state dict for `Network` of network.py.",
        "",
    ])  # fmt: skip


def _checked(found: Retrained) -> str:
    return "" if found.data_digest else "; that of the training is not known, since its result is older than the note"


def _table(first: str, second: str, rows: list[tuple[str, Any]]) -> list[str]:
    return [f"| {first} | {second} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]


def _cell(value: str) -> str:
    r"""Escape what would end a table's cell: a NAS-Bench-201 string is full of it."""
    return value.replace("|", r"\|")


def _percent(value: float | None) -> str:
    return "no such split" if value is None else f"{value:.2f} %"


def _without(parameters: int, millions: float) -> str:
    rest = round(millions * 1e6) - parameters
    return f"; {rest:,} more belong to edges that reach no output" if rest > 0 else ""
