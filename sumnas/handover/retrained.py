"""One trained network from the files of a retraining: results/retrain/<run>/, or results/one/."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from sumnas import files
from sumnas.errors import UserError
from sumnas.spaces import base
from sumnas.spaces.base import Architecture, Space


@dataclass(frozen=True)
class Retrained:
    """The `network` of an `architecture` of this `space`, in evaluation mode, on the CPU, and what the files say of it.

    `entry` has architecture, macs and params (millions), seed, test_accuracy and validation_accuracy (percent, the
    latter None without such a split), test_top5 where it was measured, and limits where a search found it; `cost` is
    what these limit. `digest` is that of the stage's settings and `data_digest` the manifest's of the data that it was
    trained on, None of a result that is older than the note. `made` is the training's run.json, empty where it is gone.
    """

    space: Space
    architecture: Architecture
    network: nn.Module
    entry: dict[str, Any]
    digest: str
    data_digest: str | None = None
    cost: str = "macs"
    made: Mapping[str, Any] = field(default_factory=dict)


def load(folder: Path, which: str | None = None) -> Retrained:
    """Read weights.safetensors and metrics.json; `which` names one of several networks: its string, or its limit.

    UserError where a file is absent or damaged, the two do not belong together, or `which` leaves a choice.
    """
    path = folder / "weights.safetensors"
    metrics = files.read_json(folder / "metrics.json")
    tensors, metadata = files.read_tensors(path)
    try:
        several = "networks" in metrics
        entries = metrics["networks"] if several else [metrics]
        entry = _chosen(folder, entries, which)
        text = entry["architecture"]
        if several:
            tensors = {n.removeprefix(f"{text}/"): t for n, t in tensors.items() if n.startswith(f"{text}/")}
        space = base.from_plain(metadata["space"])
        architecture = space.decode(text)
        network = space.network(architecture)
        network.load_state_dict(tensors)
        found = {key: entry[key] for key in ("macs", "params", "test_accuracy", "validation_accuracy", "seed")}
        return Retrained(
            space, architecture, network.eval(), {**entry, **found}, metrics["settings_digest"],
            metrics.get("data_digest"), metrics.get("cost", "macs"), _made(folder),
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError, ValidationError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: not the network that metrics.json beside it tells of ({reason}); name a folder that retrain or "
            "train_one wrote, such as results/retrain/sumnas-k2-0"
        ) from None


def _made(folder: Path) -> dict[str, Any]:
    """Return what the training noted of its circumstances. No result depends on that file, so it may be gone."""
    with contextlib.suppress(UserError):
        if isinstance(noted := files.read_json(folder / "run.json"), dict):
            return noted
    return {}


def _chosen(folder: Path, entries: list[dict[str, Any]], which: str | None) -> dict[str, Any]:
    if not entries:
        raise UserError(f"{folder}: no network was trained (retrain.enabled was false); set it to true and run retrain")
    fits = [e for e in entries if which is None or which in (e["architecture"], *_limits(e))]
    if len(fits) == 1:
        return fits[0]
    there = "; ".join(" or ".join([*_limits(e), e["architecture"]]) for e in entries)
    if which is None:
        raise UserError(f"{folder}: has {len(entries)} networks; name one with --network, by limit or string: {there}")
    raise UserError(f"--network {which}: not in {folder}, which has {there}")


def _limits(entry: dict[str, Any]) -> list[str]:
    """Return the limits it was found under as one types them: 0.3, none."""
    return ["none" if limit is None else f"{limit:g}" for limit in entry.get("limits", [])]
