"""What a log holds arrives at a real MLflow store: all of it, once, under one run, whoever sends and however often."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sumnas.tracking import Tracker, log, views
from sumnas.tracking.send import Sender
from sumnas.tracking.store import Store
from sumnas.tracking.sync import sync
from tests.interrupted import let_die

PATH = Path("results/ranking/a-0/log.jsonl")
WRITES = ("log_batch", "set_tag", "set_terminated", "update_run", "create_run", "log_artifact")
"""Everything with which a sender changes the store."""


@pytest.fixture
def store(fresh_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in the project's root, which is the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(fresh_store, "mlflow.db")
    return Store(Path())


def track(
    status: str | None = "FINISHED", epochs: int = 3, path: Path = PATH, name: str = "rank a-0"
) -> list[log.Line]:
    """Write the log of a run, without a sender, and return its lines."""
    tracker = Tracker(
        path, name, ("digest", "params digest"), {"method": "a", "adaptation_steps": 1}, {"stage": "rank"}
    )
    for epoch in range(1, epochs + 1):
        tracker.metrics({"epoch": epoch, "loss": 1 / epoch}, epoch)
    artifact = path.with_name("metrics.json")
    artifact.write_text("{}")
    tracker.artifact(artifact)
    tracker.metrics({"kendall_tau": 0.5})
    if status:
        tracker.end(status)
    return log.read(path)


def rows(query: str) -> list[tuple[Any, ...]]:
    """Ask the store's database directly."""
    with sqlite3.connect("mlflow.db") as database:
        found = database.execute(query).fetchall()
    database.close()
    return found


def content() -> dict[str, Any]:
    """Everything in the store but what differs between two stores: identities, and the times of parents' tags."""
    return {
        "runs": rows("select name, status, start_time, end_time, lifecycle_stage from runs order by name"),
        "metrics": rows("select key, value, timestamp, step, is_nan from metrics order by key, step, timestamp"),
        "latest": rows("select key, value, timestamp, step from latest_metrics order by key"),
        "params": rows("select key, value from params order by key"),
        "tags": rows("select key, value from tags where key != 'mlflow.parentRunId' order by key, value"),
    }


def test_everything_is_there(store: Store) -> None:
    lines = track()
    sync(store, [Path("results")])
    (run,) = store.client.search_runs([store.experiment], "tags.stage = 'rank'")
    parent = store.client.get_run(run.data.tags["mlflow.parentRunId"])
    assert (parent.info.run_name, parent.info.status) == ("params digest", "FINISHED")
    assert (run.info.run_name, run.info.status) == ("rank a-0", "FINISHED")
    assert (run.info.start_time, run.info.end_time) == (lines[0]["time"], lines[-1]["time"])
    assert run.data.params == {"method": "a", "adaptation_steps": "1"}
    assert run.data.metrics == {"epoch": 3, "loss": 1 / 3, "kendall_tau": 0.5}
    history = store.client.get_metric_history(run.info.run_id, "loss")
    written = [entry for entry in lines if "loss" in entry.get("values", {})]
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (n, 1 / n, e["time"]) for n, e in enumerate(written, 1)
    ]
    (artifact,) = store.client.list_artifacts(run.info.run_id)
    assert artifact.path == "metrics.json"
    assert Path(store.client.download_artifacts(run.info.run_id, "metrics.json")).read_text() == "{}"
    place = store.client.get_experiment(store.experiment).artifact_location
    assert place.startswith("file:///") and place.endswith("/mlartifacts")


def test_an_older_experiment_gets_the_view_of_rankings_and_keeps_its_own(store: Store) -> None:
    ((key, wanted),) = views.tags().items()
    assert store.client.get_experiment(store.experiment).tags[key] == wanted
    store.client.delete_experiment_tag(store.experiment, key)
    again = Store(store.root)
    assert again.client.get_experiment(again.experiment).tags[key] == wanted
    again.client.set_experiment_tag(again.experiment, key, "mine")
    assert Store(store.root).client.get_experiment(again.experiment).tags[key] == "mine"


def test_runs_of_one_group_share_a_parent(store: Store) -> None:
    for number in range(3):
        track(path=Path(f"results/{number}.log.jsonl"), name=f"score {number}")
    assert sync(store, [Path("results")]).sent == 3
    parents = {run.data.tags["mlflow.parentRunId"] for run in store.client.search_runs(["1"], "tags.stage = 'rank'")}
    assert len(parents) == 1
    assert rows("select count(*) from runs") == [(4,)]


def test_one_batch_per_epoch_and_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in WRITES:
        monkeypatch.setattr(store.client, name, _recorded(getattr(store.client, name), lambda n=name: calls.append(n)))
    tracker = Tracker(PATH, "train a-0", ("g", "g"))
    tracker.metrics({"loss": 9.0}, 1)
    reader = log.Reader(PATH)
    lines = reader.read()
    sender = Sender(store, lines)
    sender.send(lines)
    calls.clear()
    for epoch in range(2, 7):
        tracker.metrics({f"figure_{n}": n for n in range(100)}, epoch)
        lines += reader.read()
        sender.send(lines)
        sender.send(lines)  # nothing new
    assert calls == ["log_batch"] * 5
    calls.clear()
    for epoch in range(7, 27):  # a sender that lags behind sends 20 epochs together: 2000 figures, 800 at a time
        tracker.metrics({f"figure_{n}": n for n in range(100)}, epoch)
    sender.send(lines + reader.read())
    reader.close()
    assert calls == ["log_batch"] * 3
    assert rows("select count(*) from metrics") == [(1 + 25 * 100,)]


def _recorded(function: Callable[..., Any], before: Callable[[], Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        before()
        return function(*args, **kwargs)

    return call


def test_a_second_sync_adds_nothing(store: Store) -> None:
    track()
    first = sync(store, [Path("results")])
    before = content()
    second = sync(store, [Path("results")])
    assert (first.logs, first.sent, second.logs, second.sent) == (1, 1, 1, 0)
    assert content() == before
    assert [line["event"] for line in log.read(PATH)].count("sent") == 1


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_sender_that_dies_anywhere_loses_and_doubles_nothing(store: Store, done: bool, fresh_store: Path) -> None:
    """Die at each change of the store in turn, just before or just after it, then sync."""
    track()
    sync(store, [Path("results")])  # the log says now that it was sent, to a store that is gone
    shutil.copy(fresh_store, "mlflow.db")
    sync(Store(Path()), [Path("results")])
    expected, points = content(), 0
    while True:
        shutil.copy(fresh_store, "mlflow.db")
        dying = Store(Path())
        let_die(dying.client, WRITES, points, done=done)
        try:
            sync(dying, [Path("results")])
        except ConnectionError:
            sync(Store(Path()), [Path("results")])
            assert content() == expected, points
            points += 1
        else:
            break
    assert points == 7  # parent, its end, run, batch, artifact, end, count


def test_parameters_of_a_known_run_stay(store: Store) -> None:
    lines = track(status=None)
    Sender(store, lines).send(lines)
    changed = [
        {**entry, "values": {"method": "b", "more": "c"}} if entry["event"] == "params" else entry for entry in lines
    ]
    more = [{"event": "metrics", "time": 1, "step": 9, "values": {"loss": 0.25}}]
    again = Sender(store, changed)
    again.sent = 0
    again.send(changed + more)
    run = store.client.get_run(again.id)
    assert run.data.params == {"method": "a", "adaptation_steps": "1", "more": "c"}
    assert run.data.metrics["loss"] == 0.25


def test_a_run_that_somebody_deleted_is_not_made_again(store: Store) -> None:
    lines = track()
    sync(store, [Path("results")])
    store.client.delete_run(Sender(store, lines).id)
    store.client.set_terminated, sent = None, sync(store, [Path("results")]).sent  # type: ignore[method-assign]
    assert sent == 0
    assert rows("select count(*) from runs") == [(2,)]


def test_a_log_without_an_end_is_of_a_killed_stage_unless_the_stage_lives(store: Store) -> None:
    tracker = Tracker(PATH, "train a-0", ("g", "g"))
    tracker.metrics({"loss": 1.0}, 1)
    sync(store, [Path("results")])
    assert rows("select status from runs where name = 'train a-0'") == [("RUNNING",)]
    assert tracker._writer is not None
    tracker._writer.close()
    sync(store, [Path("results")])
    assert rows("select status from runs where name = 'train a-0'") == [("KILLED",)]


def test_an_unsent_log_is_kept_until_it_is_sent(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    track(epochs=1)
    monkeypatch.setattr("sumnas.tracking.tracker.Ticket", lambda _root, _path: None)
    monkeypatch.setenv("SUMNAS_TRACKING", "on")
    track(epochs=2)
    assert len(list(PATH.parent.glob("log.*.jsonl"))) == 1
    report = sync(store, [Path("results")])
    assert (report.logs, report.sent, report.changed) == (2, 2, [])
    assert [path.name for path in PATH.parent.glob("*log*")] == ["log.jsonl"]
    track(epochs=3)  # the one before has arrived: nothing to keep
    assert [path.name for path in PATH.parent.glob("*log*")] == ["log.jsonl"]


def test_a_file_that_changed_since_is_not_sent(store: Store) -> None:
    track()
    PATH.with_name("metrics.json").write_text("other")
    assert sync(store, [Path("results")]).changed == ["results/ranking/a-0/metrics.json"]
    (run,) = store.client.search_runs([store.experiment], "tags.stage = 'rank'")
    assert store.client.list_artifacts(run.info.run_id) == []


def test_a_log_cannot_send_files_from_elsewhere(store: Store, tmp_path: Path) -> None:
    secret = tmp_path.parent / "secret"
    secret.write_text("x")
    lines = track()
    for path in (str(secret), "../secret"):
        lines[2] = {"event": "artifact", "time": 1, "path": path, "sha256": "0"}
        sender = Sender(store, lines)
        with pytest.raises(Exception, match="must lie in the project"):
            sender.send(lines)


def test_damaged_logs_are_named_and_the_others_sent(store: Store) -> None:
    lines = track()
    Path("results/x.log.jsonl").write_text("")
    text = PATH.read_text().splitlines()
    text[3] = text[3][:20]
    PATH.write_text("\n".join(text) + "\n")
    report = sync(store, [Path("results")])
    assert report.damaged == ["results/x.log.jsonl"]
    assert rows("select count(*) from metrics where key = 'loss'") == [(2,)]
    assert json.loads(text[-1]) == lines[-1]


def test_a_user_s_own_store_and_a_path_with_a_space(
    fresh_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "a project"
    root.mkdir()
    shutil.copy(fresh_store, root / "own.db")
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/own.db")
    started = time.monotonic()
    track()
    assert sync(Store(Path()), [Path("results")]).sent == 1
    assert not Path("mlflow.db").exists() and Path("own.db.lock").exists()
    assert time.monotonic() - started < 20
