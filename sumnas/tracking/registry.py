"""What a run was made of and what it made, in MLflow's own words: data sets as inputs, networks in the registry.

Doing it again changes nothing: a data set is known by name and digest, a version by its run and network.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sumnas.tracking import model
from sumnas.tracking.log import Line

if TYPE_CHECKING:
    from sumnas.tracking.store import Store

FOLDER = "networks"
"""Of a run's files, with a folder per network."""
NETWORK = "sumnas.network"
"""The tag of a version that tells the networks of one run apart."""
DIGEST = 36
"""Characters that MLflow keeps of a digest; the whole one stands in the source."""
TRANSIENT = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
"""Errors after which the whole log is sent again later; with another one the store has no registry for us."""


def log_input(store: Store, run: str, entry: Line) -> None:
    """Note that the run has read a data set."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"path": entry["path"], "sha256": entry["sha256"]})
    dataset = Dataset(entry["name"], entry["sha256"][:DIGEST], "local", source)
    tags = [InputTag("mlflow.data.context", entry["context"])]
    with store.alone_if_local():
        store.client.log_inputs(run, [DatasetInput(dataset, tags)])


def register(store: Store, run: str, entry: Line) -> str | None:
    """Register one network of the run as a version of the model `name`; return why the store would not have it."""
    from mlflow.exceptions import MlflowException

    try:
        with store.alone():
            _register(store, run, entry)
    except MlflowException as error:
        if error.error_code in TRANSIENT:
            raise
        return str(error).strip().partition("\n")[0][:250]
    return None


def _register(store: Store, run: str, entry: Line) -> None:
    client, name, network = store.client, entry["name"], entry["network"]
    there = client.search_model_versions(f"run_id = '{run}'")
    if any(version.tags.get(NETWORK) == network for version in there):
        return
    with tempfile.TemporaryDirectory(prefix="sumnas-") as folder:
        place = Path(folder) / network
        model.save(store.root / entry["path"], entry["architecture"], entry["about"], place)
        client.log_artifacts(run, str(place), f"{FOLDER}/{network}")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"Networks that searches with {name} found, trained alone.")
    source = f"{client.get_run(run).info.artifact_uri}/{FOLDER}/{network}"
    tags = {NETWORK: network, "architecture": entry["architecture"], **{k: str(v) for k, v in entry["about"].items()}}
    client.create_model_version(name, source, run, tags=tags, await_creation_for=0)
