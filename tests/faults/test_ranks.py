"""Stages that train in several processes: killed, stopped, and gone on with in another number of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sumnas import files
from tests import in_process
from tests.workflow.test_ranks import EPOCHS, FOLDER, ROOT, RUN, begin
from workflow.stages import FOUND, RETRAIN


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ranks_of(launcher: int) -> dict[int, int]:
    """Return the process number of every rank."""
    found = {}
    for path in Path(f"/proc/{launcher}/task").glob("*/children"):
        for child in path.read_text().split():
            words = Path(f"/proc/{child}/environ").read_text().split("\0")
            found |= {int(word[5:]): int(child) for word in words if word.startswith("RANK=")}
    return found


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def lose_the_second(command: list[str], checkpoints: Path, results: Path) -> tuple[Path, str]:
    """Start it, kill the second of its two processes, and see the first end with nothing half written.

    Returns the folder of the work that was begun, and its checkpoint's digest.
    """
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(checkpoints.glob("*/checkpoint.sha256")))
    ranks = ranks_of(first.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 128 + signal.SIGKILL and "Traceback" not in said, said
    assert said.count("process 1 of 2 was ended by SIGKILL; run the same command again") == 1
    assert gone(ranks[0]) and gone(ranks[1])
    assert {path.name for path in results.iterdir()} <= {"log.jsonl"}
    (work,) = checkpoints.iterdir()
    return work, files.sha256(work / "checkpoint.pt")


def test_killed_and_stopped_it_goes_on_in_another_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch)
    in_process.run(RUN, ["prepare_data", "describe_method"])
    checkpoints = tmp_path / "checkpoints/train_supernet"
    whole = Path("params.yaml").read_text()
    settings = yaml.safe_load(whole)
    settings["supernet"]["split_batch"] = 2
    Path("params.yaml").write_text(yaml.safe_dump(settings))

    # Started by hand it starts two processes itself, which share every batch. One is killed: the other ends, and
    # nothing is half written.
    alone = [sys.executable, "-m", "workflow.train_supernet", "--run", RUN]
    work, begun = lose_the_second(alone, checkpoints, FOLDER)

    # Under torchrun: it goes on, the batches whole, the paths shared, and a signal to torchrun saves. The checkpoints
    # are those of the first process.
    Path("params.yaml").write_text(whole)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "workflow.train_supernet", "--", "--run", RUN]
    second = subprocess.Popen([*torchrun, *words], stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    said = ""
    while "going on from step" not in said:
        said += (line := second.stderr.readline())
        assert line, said
    os.kill(second.pid, signal.SIGTERM)
    said += second.communicate(timeout=120)[1]
    assert second.returncode != 0 and said.count("stopped by SIGTERM; run the same command again") == 1
    assert said.count("going on from step") == 1 and "train_supernet: error" not in said
    assert {path.name for path in FOLDER.iterdir()} <= {"log.jsonl"} and list(checkpoints.iterdir()) == [work]
    assert files.sha256(work / "checkpoint.pt") != begun

    # One process ends it.
    settings = yaml.safe_load(Path("params.yaml").read_text())
    del settings["supernet"]["processes"]
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    in_process.run(RUN, ["train_supernet"])
    rows = files.read_csv(FOLDER / "history.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1))
    assert int(rows[-1]["passes"]) == EPOCHS * (897 // 256) * 5 * 2
    assert not (work / "checkpoint.pt").exists()


def another(path: Path, known: str) -> bool:
    """Whether a file is there that is not the known one: one checkpoint takes the other's place."""
    with contextlib.suppress(FileNotFoundError):
        return files.sha256(path) != known
    return False


ARCHITECTURE = "|nor_conv_1x1~0|+|skip_connect~0|none~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|"
RESULTS = Path(f"results/retrain/{RUN}")


def retrain_longer(settings: dict[str, Any]) -> None:
    settings["retrain"]["processes"] = 2
    settings["retrain"]["recipe"] |= {"epochs": 40, "batch_size": 100, "last_batch": "keep", "ema_decay": 0.9}


def test_retraining_killed_and_stopped_goes_on_in_another_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process.begin(tmp_path, monkeypatch, retrain_longer)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SUMNAS_CHECKPOINT_SECONDS", "0.2")
    in_process.run(RUN, ["prepare_data"])
    found = {"method": "sumnas-k2", "cost": "macs", "found": [{"limit": None, "architecture": ARCHITECTURE}]}
    files.write_json(Path(FOUND.format(run=RUN)), found)
    checkpoints = tmp_path / "checkpoints/retrain"

    # Started by hand it starts two processes itself. One is killed: the other ends, and nothing is half written.
    alone = [sys.executable, "-m", "workflow.retrain", "--run", RUN]
    work, begun = lose_the_second(alone, checkpoints, RESULTS)

    # A signal to the second of two processes saves and ends both.
    second = subprocess.Popen(alone, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: another(work / "checkpoint.pt", begun))
    os.kill(ranks_of(second.pid)[1], signal.SIGTERM)
    said = second.communicate(timeout=120)[1]
    assert second.returncode == 128 + signal.SIGTERM and said.count("stopped by SIGTERM; run the same command") == 1
    assert {path.name for path in RESULTS.iterdir()} <= {"log.jsonl"} and list(checkpoints.iterdir()) == [work]

    # One process ends it; two, who find it trained, write the very same.
    shared = Path("params.yaml").read_text()
    settings = yaml.safe_load(shared)
    del settings["retrain"]["processes"]
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    in_process.run(RUN, ["retrain"])
    result, weights = files.read_json(Path(RETRAIN.format(run=RUN))), (RESULTS / "weights.safetensors").read_bytes()
    assert not (work / "checkpoint.pt").exists() and len(result["networks"]) == 1
    Path("params.yaml").write_text(shared)
    subprocess.run(alone, check=True, capture_output=True, timeout=120)
    again = files.read_json(Path(RETRAIN.format(run=RUN)))
    assert again["networks"] == result["networks"] and again["settings_digest"] != result["settings_digest"]
    assert (RESULTS / "weights.safetensors").read_bytes() == weights
    assert files.read_json(RESULTS / "run.json")["processes"] == "2"


def test_a_mistake_that_all_processes_meet_with_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_fast(settings: dict[str, Any]) -> None:
        settings["retrain"]["processes"] = 2
        settings["retrain"]["recipe"] |= {"epochs": 3, "learning_rate": 1e30}

    in_process.begin(tmp_path, monkeypatch, too_fast)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    in_process.run(RUN, ["prepare_data"])
    command = [sys.executable, "-m", "workflow.train_one", ARCHITECTURE]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and ended.stdout == ""
    (line,) = [line for line in ended.stderr.splitlines() if "error" in line]
    assert line.startswith("train_one: error: ") and "the loss became nan in epoch 1" in line
    assert "SIGTERM" not in ended.stderr and not Path("results/one").exists()
