"""The training stage in several processes: killed, stopped, and gone on with in another number of them."""

from __future__ import annotations

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
from tests.workflow.test_ranks import EPOCHS, FOLDER, RUN, begin


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


def test_killed_and_stopped_it_goes_on_in_another_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch)
    in_process.run(RUN, ["prepare_data", "describe_method"])
    checkpoints = tmp_path / "checkpoints/train_supernet"

    # Started by hand it starts two processes itself. One is killed: the other ends, and nothing is half written.
    alone = [sys.executable, "-m", "workflow.train_supernet", "--run", RUN]
    first = subprocess.Popen(alone, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(checkpoints.glob("*/checkpoint.sha256")))
    ranks = ranks_of(first.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 128 + signal.SIGKILL and "Traceback" not in said
    assert said.count("process 1 of 2 was ended by SIGKILL; run the same command again") == 1
    assert gone(ranks[0]) and gone(ranks[1])
    assert {path.name for path in FOLDER.iterdir()} <= {"log.jsonl"}
    (work,) = checkpoints.iterdir()
    begun = files.sha256(work / "checkpoint.pt")

    # Under torchrun: it goes on, and a signal to torchrun saves. The checkpoints are those of the first process.
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
