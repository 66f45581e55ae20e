"""A retrained network as MLflow's registry has it: `mlflow.pyfunc.load_model("models:/sumnas-k2/1")`.

MLflow calls `_load_pyfunc`; nothing else is needed than the file that was registered, and this package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

WEIGHTS = "network.safetensors"
"""The file of a registered network: its tensors, and what is known of it as metadata."""


class Network:
    """A network in evaluation mode, on the CPU; `module` is torch's, `about` has its architecture and accuracies."""

    def __init__(self, module: nn.Module, about: dict[str, Any]) -> None:
        self.module, self.about = module, about

    def predict(self, images: NDArray[np.float32], params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Return the logits [N, classes] of images [N, channels, height, width], normalised as the data set's are."""
        import torch

        with torch.no_grad():
            logits = self.module(torch.as_tensor(images, dtype=torch.float32))
        found: NDArray[np.float32] = logits.numpy()
        return found


def save(weights: Path, architecture: str, about: dict[str, Any], folder: Path) -> None:
    """Write one of the networks of results/retrain/<run>/weights.safetensors, as MLflow's registry wants it.

    Reads and writes without torch: it is a sender that calls it.
    """
    import yaml
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from sumnas import files

    metadata, start = files.read_metadata(weights), f"{architecture}/"
    with safe_open(weights, "np") as file:
        names = [name for name in file.keys() if name.startswith(start)]  # noqa: SIM118 - not a mapping
        tensors = {name.removeprefix(start): file.get_tensor(name) for name in names}
    folder.mkdir(parents=True)
    about = {"space": metadata["space"], "architecture": architecture, **about}
    save_file(tensors, folder / WEIGHTS, {"sumnas": json.dumps(about, sort_keys=True)})
    flavor = {"loader_module": __name__, "data": WEIGHTS}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}}), encoding="utf-8")


def _load_pyfunc(path: str) -> Network:
    """Return the network whose file MLflow names."""
    from sumnas import files
    from sumnas.spaces import base

    tensors, about = files.read_tensors(Path(path))
    space = base.from_plain(about["space"])
    module = space.network(space.decode(about["architecture"]))
    module.load_state_dict(tensors)
    return Network(module.eval(), about)
