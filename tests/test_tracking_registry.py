"""Data sets as inputs and networks in the registry, of a real MLflow store: once each, and to be loaded from it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sumnas import files
from sumnas.spaces.nasbench201 import NASBench201
from sumnas.tracking import Tracker, log, usage
from sumnas.tracking.send import ITSELF, NOTE
from sumnas.tracking.store import Store
from sumnas.tracking.sync import sync
from tests.interrupted import let_die

FOLDER = Path("results/retrain/a-0")
ARCHITECTURES = {"0.3M": (3, 1, 2, 0, 4, 3), "unlimited": (1, 1, 1, 3, 0, 2)}
WRITES = (
    "log_batch",
    "log_inputs",
    "log_artifacts",
    "create_registered_model",
    "create_model_version",
    "set_terminated",
)


@pytest.fixture
def store(fresh_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in the project's root, which is the current directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(fresh_store, "mlflow.db")
    return Store(Path())


def track(space: NASBench201) -> dict[str, torch.nn.Module]:
    """Write the weights of two networks as the stage retrain does, and the log of the run; return the networks."""
    torch.manual_seed(0)
    networks = {which: space.network(architecture).eval() for which, architecture in ARCHITECTURES.items()}
    weights, path = dict[str, torch.Tensor](), FOLDER / "weights.safetensors"
    for which, network in networks.items():
        text = space.encode(ARCHITECTURES[which])
        weights |= {f"{text}/{name}": tensor for name, tensor in network.state_dict().items()}
    files.write_tensors(path, weights, {"space": space.settings.model_dump(mode="json")})
    tracker = Tracker(FOLDER / "log.jsonl", "retrain a-0", ("g", "g"), {}, {"stage": "retrain"})
    tracker.dataset("digits", "training", Path("data/prepared"), "0123456789abcdef" * 4)
    tracker.tags({NOTE: f"![x](get-artifact?path=x.svg&run_uuid={ITSELF})"})
    for which, architecture in ARCHITECTURES.items():
        tracker.model("a", which, path, space.encode(architecture), {"test_accuracy": 98.5, "run": "a-0"})
    tracker.end("FINISHED")
    return networks


def test_a_network_comes_back_from_the_registry(
    store: Store, tiny_space: NASBench201, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = track(tiny_space)
    sync(store, [Path("results")])
    versions = {v.tags["sumnas.network"]: v for v in store.client.search_model_versions("name = 'a'")}
    assert set(versions) == set(networks)
    with warnings.catch_warnings():  # MLflow warns of its own type hints
        warnings.simplefilter("ignore")
        import mlflow.pyfunc

    images = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    for which, network in networks.items():
        loaded = mlflow.pyfunc.load_model(f"models:/a/{versions[which].version}")
        with torch.no_grad():
            assert np.array_equal(loaded.predict(images), network(torch.from_numpy(images)).numpy())
        about = loaded._model_impl.about
        assert about["architecture"] == tiny_space.encode(ARCHITECTURES[which]) == versions[which].tags["architecture"]
        assert about["test_accuracy"] == 98.5 and versions[which].tags["run"] == "a-0"


def test_inputs_have_their_hash_and_notes_their_run(store: Store, tiny_space: NASBench201) -> None:
    track(tiny_space)
    sync(store, [Path("results")])
    (run,) = store.client.search_runs([store.experiment], "tags.stage = 'retrain'")
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("digits", ("0123456789abcdef" * 4)[:36])
    assert "0123456789abcdef" * 4 in found.dataset.source and "data/prepared" in found.dataset.source
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]
    assert run.data.tags[NOTE] == f"![x](get-artifact?path=x.svg&run_uuid={run.info.run_id})"


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_sender_that_dies_anywhere_loses_and_doubles_nothing(
    store: Store, done: bool, fresh_store: Path, tiny_space: NASBench201
) -> None:
    track(tiny_space)
    points = 0
    while True:
        shutil.copy(fresh_store, "mlflow.db")
        dying = Store(Path())
        died = let_die(dying.client, WRITES, points, done=done)
        try:
            sync(dying, [Path("results")])
        except ConnectionError:
            sync(Store(Path()), [Path("results")])
        client = store.client
        (run,) = client.search_runs([store.experiment], "tags.stage = 'retrain'")
        assert run.info.status == "FINISHED" and len(run.inputs.dataset_inputs) == 1, points
        assert sorted(v.tags["sumnas.network"] for v in client.search_model_versions("")) == ["0.3M", "unlimited"], (
            points
        )
        if not died():
            break
        points += 1
    assert points == 9  # parent's end, batch, input, two networks' files and versions, one model, end


def test_a_store_without_a_registry_says_so_and_has_the_rest(store: Store, tiny_space: NASBench201) -> None:
    from mlflow.exceptions import MlflowException

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise MlflowException("no models here", error_code=1001)  # BAD_REQUEST

    track(tiny_space)
    store.client.create_registered_model = refuse
    sync(store, [Path("results")])
    (run,) = store.client.search_runs([store.experiment], "tags.stage = 'retrain'")
    assert run.info.status == "FINISHED" and "no models here" in run.data.tags["model_not_registered"]


def test_a_network_whose_file_has_changed_is_not_registered(store: Store, tiny_space: NASBench201) -> None:
    track(tiny_space)
    (FOLDER / "weights.safetensors").write_bytes(b"other")
    assert sync(store, [Path("results")]).changed == [f"{FOLDER}/weights.safetensors"] * 2
    assert list(store.client.search_model_versions("")) == []


def test_what_the_machine_gave_is_tracked_now_and_then(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("results/log.jsonl")
    monkeypatch.setattr(usage, "EVERY", 0.0)
    tracker = Tracker(path, "train a-0", ("g", "g"))
    sum(range(10**6))
    tracker.metrics({"loss": 1.0}, 1)
    monkeypatch.setattr(usage, "EVERY", 60.0)
    tracker.metrics({"loss": 1.0}, 2)
    found = [line["values"] for line in log.read(path) if line["event"] == "metrics"]
    assert [sorted(values)[0] for values in found] == ["loss", "system/cpu_percent", "loss"]
    assert 0 < found[1]["system/memory_mb"] <= found[1]["system/peak_memory_mb"] + 1
    assert found[1]["system/cpu_percent"] > 0
