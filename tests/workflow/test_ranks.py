"""The training stage in several processes: killed, stopped, and gone on with in another number of them."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from sumnas import files
from sumnas.errors import UserError
from tests import in_process
from workflow import launch, train_supernet
from workflow.stage import Job, make_job
from workflow.stages import METHOD, STAGES

ROOT = Path(__file__).resolve().parents[2]
RUN = "sumnas-k2-0"
FOLDER = Path(f"results/supernet/{RUN}")
EPOCHS = 40  # so that no training is through before it is killed


def change(settings: dict[str, Any]) -> None:
    settings["supernet"] |= {"epochs": EPOCHS, "processes": 2, "probes": 0}


def begin(folder: Path, patch: pytest.MonkeyPatch) -> None:
    in_process.begin(folder, patch, change)
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("SUMNAS_CHECKPOINT_SECONDS", "0.2")


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


def job_of(strategy: str) -> Job:
    return make_job(STAGES["train_supernet"], argparse.Namespace(run=f"{strategy}-0"))


def test_how_many_processes_there_are_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path, monkeypatch)
    assert train_supernet.processes(job_of("sumnas-k2").params) == 2 and capsys.readouterr().err == ""
    assert train_supernet.processes(job_of("spos").params) == 1
    assert capsys.readouterr().err.startswith("in one process in spite of supernet.processes: strategy 'spos' has no")
    started: list[tuple[str, int]] = []
    monkeypatch.setattr(launch, "start", lambda stage, count: started.append((stage, count)) or 143)
    with pytest.raises(SystemExit) as ended, launch.together(job_of("sumnas-k2"), 2):
        pass
    assert ended.value.code == 143 and started == [("train_supernet", 2)]
    for wanted in (None, "auto", 1):
        with launch.together(job_of("sumnas-k2"), wanted) as ranks:  # type: ignore[arg-type]
            assert not ranks.several
    assert len(started) == 1


def test_what_torchrun_may_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch)
    said = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="train_supernet runs in one process: start it without torchrun"):
        launch.together(job_of("sumnas-k2"), None).__enter__()
    with pytest.raises(UserError, match="supernet.processes = 2: torchrun has started 3, and another number"):
        launch.together(job_of("sumnas-k2"), 2).__enter__()
    assert train_supernet.processes(job_of("spos").params) == 2  # refused later, where it would be shared


def name_it(named: dict[str, Any], settings: dict[str, Any]) -> None:
    settings["supernet"] |= named


def test_the_number_is_part_of_the_digest_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests, works = [], []
    for number, named in enumerate(({}, {"processes": "auto"}, {"processes": 1}, {"processes": 2})):
        folder = tmp_path / str(number)
        folder.mkdir()
        in_process.begin(folder, monkeypatch, partial(name_it, named))
        job = job_of("sumnas-k2")
        digests.append(job.params.digest())
        files.write_json(job.path(METHOD), {})
        with job.work(inputs=(job.path(METHOD),)) as work:
            works.append(work.folder.name)
    assert digests[0] == digests[1] and len(set(digests)) == 3
    assert len(set(works)) == 1  # any number of processes goes on from a checkpoint
