"""How many processes share a stage that trains; tests/faults/test_ranks.py kills them."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher import api

from sumnas import files, retraining
from sumnas.checkpoint import Interrupted
from sumnas.distributed import Place
from sumnas.errors import UserError
from tests import in_process
from workflow import launch, retrain, train_supernet
from workflow.stage import Job, make_job
from workflow.stages import FOUND, RETRAIN, SHARED, STAGES

ROOT = Path(__file__).resolve().parents[2]
RUN = "sumnas-k2-0"
FOLDER = Path(f"results/supernet/{RUN}")
EPOCHS = 40  # so that no training is through before it is killed
THREE = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
"""What torchrun says to the first of three processes."""


def change(settings: dict[str, Any]) -> None:
    settings["supernet"] |= {"epochs": EPOCHS, "processes": 2, "probes": 0}


def begin(folder: Path, patch: pytest.MonkeyPatch) -> None:
    in_process.begin(folder, patch, change)
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("SUMNAS_CHECKPOINT_SECONDS", "0.2")


def job_of(strategy: str, stage: str = "train_supernet") -> Job:
    return make_job(STAGES[stage], argparse.Namespace(run=f"{strategy}-0"))


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
    for name, value in THREE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="train_supernet runs in one process: start it without torchrun"):
        launch.together(job_of("sumnas-k2"), None).__enter__()
    with pytest.raises(UserError, match="supernet.processes = 2: torchrun has started 3, and another number"):
        launch.together(job_of("sumnas-k2"), 2).__enter__()
    assert train_supernet.processes(job_of("spos").params) == 2  # refused later, where it would be shared


def name_it(block: str, named: dict[str, Any], settings: dict[str, Any]) -> None:
    settings[block] |= named


def test_retraining_has_a_number_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted(**named: Any) -> tuple[Job, int | str]:
        in_process.begin(tmp_path, monkeypatch, partial(name_it, "retrain", named))
        job = job_of("spos", "retrain")
        return job, retrain.processes(job.params)

    assert wanted()[1] == wanted(processes="auto")[1] == "auto"
    assert wanted(processes=2, enabled=False)[1] == "auto"  # nothing to share
    job, number = wanted(processes=2)
    assert number == 2
    for name, value in THREE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="^retrain.processes = 2: torchrun has .* set retrain.processes: auto"):
        launch.together(job, 2).__enter__()


def test_a_signal_while_a_network_is_scored_stops_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process.begin(tmp_path, monkeypatch, partial(name_it, "retrain", {"enabled": True}))
    in_process.run(RUN, ["prepare_data"])
    names = [f"|{one}~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|" for one in ("none", "skip_connect")]
    found = [{"limit": limit, "architecture": text} for limit, text in zip((1, None), names, strict=True)]
    files.write_json(Path(FOUND.format(run=RUN)), {"method": "sumnas-k2", "cost": "macs", "found": found})
    evaluate = retraining.evaluate

    def signalled(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(retraining, "evaluate", signalled)
        in_process.run(RUN, ["retrain"])
    (kept,) = tmp_path.glob("checkpoints/retrain/*/network.safetensors")  # the first is whole, the second not begun
    before = kept.read_bytes()
    in_process.run(RUN, ["retrain"])
    result = files.read_json(Path(RETRAIN.format(run=RUN)))
    assert [entry["architecture"] for entry in result["networks"]] == names and kept.read_bytes() == before


@pytest.mark.parametrize(("stage", "block"), SHARED.items())
def test_the_number_is_part_of_the_digest_where_it_is_named(
    stage: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests, works = [], []
    asked: list[dict[str, Any]] = [{}, {"processes": "auto"}, {"processes": 1}, {"processes": 2}]
    if block == "supernet":
        asked[1]["split_batch"] = 1
        asked.append({"processes": 2, "split_batch": 2})
    for number, named in enumerate(asked):
        folder = tmp_path / str(number)
        folder.mkdir()
        in_process.begin(folder, monkeypatch, partial(name_it, block, named))
        job = job_of("sumnas-k2", stage)
        digests.append(job.params.digest())
        files.write_json(Path("input.json"), {})
        with job.work(inputs=(Path("input.json"),)) as work:
            works.append(work.folder.name)
    assert digests[0] == digests[1] and len(set(digests)) == len(asked) - 1
    assert len(set(works)) == 1  # any number of processes goes on from a checkpoint


@pytest.mark.parametrize(
    ("ended", "code", "text"),
    [
        ({0: (1, 0), 1: (-signal.SIGKILL, 0)}, 137, "process 1 of 2 was ended by SIGKILL"),  # 0 has lost 1
        ({1: (-signal.SIGSEGV, 0), 0: (1, 9)}, 139, "process 1 of 2 was ended by SIGSEGV"),
        ({0: (1, 0), 1: (-signal.SIGTERM, 0)}, 1, ""),  # 1 was through when the launcher ended it
        ({0: (1, 0), 1: (-signal.SIGKILL, 30)}, 1, ""),  # 1 did not end by itself
        ({0: (143, 0), 1: (143, 0)}, 143, ""),
        ({0: (-signal.SIGTERM, 0), 1: (-signal.SIGTERM, 0)}, 143, "process 0 of 2 was ended by SIGTERM"),
    ],
    ids=str,
)
def test_the_end_is_that_of_the_process_that_the_others_followed(
    ended: dict[int, tuple[int, int]], code: int, text: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    failures = {rank: ProcessFailure(rank, 1, exitcode, "none") for rank, (exitcode, _) in ended.items()}
    for rank, (_, seconds) in ended.items():
        failures[rank].timestamp = 1000 + seconds

    def launched(*_: Any) -> Any:
        raise ChildFailedError("train_one", failures)

    monkeypatch.setattr(api, "elastic_launch", lambda *_: launched)
    monkeypatch.setattr(logging, "disable", lambda _: None)
    assert launch.start("train_one", 2) == code
    said = capsys.readouterr().err
    assert said == "" if not text else said.startswith(f"train_one: error: {text}; run the same command again")


@pytest.mark.parametrize("place", [None, Place(0, 1, 0)])
def test_one_process_ends_as_any_program(place: Place | None) -> None:
    with pytest.raises(SystemExit, match="3"), launch.leaving(place):
        raise SystemExit(3)


def test_a_process_beside_others_leaves_at_once_with_its_code() -> None:
    code = (
        "import atexit, sys\nfrom sumnas.distributed import Place\nfrom workflow import launch\n"
        "atexit.register(print, 'the end of the interpreter')\n"
        "with launch.leaving(Place(1, 2, 1)):\n    print('said')\n    sys.exit(3)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "said\n", "")
