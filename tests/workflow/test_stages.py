"""The three descriptions of the pipeline agree: workflow/stages.py, dvc.yaml and the Snakefile."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sumnas.spaces import base as spaces
from workflow import sources
from workflow.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
DVC: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
METHOD, SEED, SHARD = PARAMS["run"]["methods"][-1], PARAMS["run"]["seeds"][0], PARAMS["run"]["shards"][0]
NAMES = {"method": METHOD, "seed": str(SEED), "shard": str(SHARD), "run": f"{METHOD}-{SEED}"}


def expected_inputs(name: str) -> set[str]:
    """The inputs that workflow/stages.py declares, for one job, every shard named."""
    stage = STAGES[name]
    found = set()
    for template in stage.inputs:
        shards = PARAMS["run"]["shards"] if "shard" not in stage.per else [SHARD]
        found |= {template.format(**{**NAMES, "shard": str(shard)}) for shard in shards}
    return found


def expected_code(name: str) -> set[str]:
    """The source files of one job, the strategy's own included where it is a dependency."""
    code = set(sources.of_stage(name, PARAMS["space"]["name"]))
    if name == "describe_method":
        code.add(f"sumnas/methods/{PARAMS['methods'][METHOD]['strategy']}.py")
    return code


def command(name: str) -> str:
    """The command line of one job."""
    per = STAGES[name].per
    words = ["python", "-m", f"workflow.{name}"]
    if "seed" in per:
        words += ["--run", NAMES["run"]]
    elif "method" in per:
        words += ["--method", METHOD]
    if "shard" in per:
        words += ["--shard", str(SHARD)]
    return " ".join(words)


def resolve(value: Any) -> Any:
    """Fill in DVC's templates for one job."""
    if isinstance(value, list):
        return [resolve(item) for item in value]
    block = PARAMS["methods"][METHOD]
    table = {"key": METHOD, "item": str(SHARD), "space.name": PARAMS["space"]["name"]}
    table |= {f"item.{key}": text for key, text in NAMES.items()} | {"item.strategy": block["strategy"]}
    return re.sub(r"\$\{([^}]+)\}", lambda match: table[match[1]], value)


def dvc_stage(name: str) -> dict[str, Any]:
    """One stage of dvc.yaml with its templates filled in for one job."""
    body = DVC[name].get("do", DVC[name])
    return {key: resolve(value) for key, value in body.items() if key not in ("matrix", "foreach")}


def test_dvc_has_the_same_stages_in_the_same_order() -> None:
    assert list(DVC) == ["names", *STAGES]


def test_dvc_looks_at_the_names_before_it_uses_any() -> None:
    """A template of `names`' own would be filled in before its look; it has to be repeated where it uses a name."""
    names = DVC["names"]
    assert "${" not in str(names) and {"run.methods", "run.seeds", "run.shards", "methods"} == set(names["params"])
    (looked_at,) = names["outs"]
    for name, body in DVC.items():
        used = "${item" in str(body) or "${key" in str(body)
        assert (set(looked_at) <= set(body.get("do", body).get("deps", []))) == used, name


@pytest.mark.parametrize("name", STAGES)
def test_dvc_stage(name: str) -> None:
    stage, found = STAGES[name], dvc_stage(name)
    assert found["cmd"] == command(name)
    assert found["params"] == [block.format(**NAMES) for block in stage.blocks]
    outputs = [path for kind in ("outs", "metrics", "plots") for path in found.get(kind, [])]
    assert sorted(outputs) == sorted(path.format(**NAMES) for path in stage.outputs)
    deps = set(found["deps"])
    assert expected_code(name) <= deps, f"dvc.yaml, {name}: deps lack {expected_code(name) - deps}"
    files = deps - expected_code(name) - {"workflow/names.txt"}
    # DVC depends on the folder of the shards, so that their number need not be known in dvc.yaml.
    folded = {str(Path(p).parent) if "shard" not in stage.per and "{shard}" in t else p
              for t in stage.inputs for p in [t.format(**NAMES)]}  # fmt: skip
    assert files == folded


@pytest.mark.parametrize("name", STAGES)
def test_dvc_repeats_a_stage_over_the_right_lists(name: str) -> None:
    per, body = STAGES[name].per, DVC[name]
    if per == ("method",):
        assert body["foreach"] == "${methods}"
    elif per == ("shard",):
        assert body["foreach"] == "${run.shards}"
    elif per:
        assert body["matrix"] == {key: f"${{run.{key}s}}" for key in per}
    else:
        assert "foreach" not in body and "matrix" not in body


@pytest.fixture(scope="module")
def snakemake_jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What a dry run from nothing says of every job, by rule."""
    folder = tmp_path_factory.mktemp("dry")
    for name in ("Snakefile", "params.yaml", "workflow", "sumnas"):
        (folder / name).symlink_to(ROOT / name)
    result = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "-p", "--nocolor", "--cores", "1"],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    jobs: dict[str, list[dict[str, Any]]] = {}
    for chunk in re.split(r"\n(?=(?:local)?rule \w+:\n)", result.stdout):
        if match := re.match(r"(?:local)?rule (\w+):\n", chunk):
            fields = dict(re.findall(r"^    (\w+): (.*)$", chunk, re.M))
            shell = re.search(r"^Shell command: (python -m \S.*)$", chunk, re.M)
            jobs.setdefault(match[1], []).append(
                {
                    "input": set(fields.get("input", "").split(", ")) - {""},
                    "output": set(fields.get("output", "").split(", ")) - {""},
                    "shell": shell[1] if shell else "",
                }
            )
    return jobs


@pytest.mark.engine
@pytest.mark.parametrize("name", STAGES)
def test_snakemake_rule(name: str, snakemake_jobs: dict[str, list[dict[str, Any]]]) -> None:
    stage = STAGES[name]
    outputs = {path.format(**NAMES) for path in stage.outputs}
    job = next(job for job in snakemake_jobs[name] if job["output"] == outputs)
    assert job["shell"].partition(" >> ")[0] == command(name)
    code = {path for path in job["input"] if path.endswith(".py")}
    assert code == expected_code(name)
    files = job["input"] - code
    if name == "summarize":  # DVC depends on the folders, Snakemake on the files of the runs that are listed
        assert {"/".join(path.split("/")[:2]) for path in files} == expected_inputs(name)
    elif name in ("prepare_data", "build_benchmark", "build_further"):
        # DVC depends on the folder of raw files, Snakemake on those of the source in use: the default has none.
        assert files == expected_inputs(name) - {"data/raw"} and "data/raw" in expected_inputs(name)
    else:
        assert files == expected_inputs(name)


@pytest.mark.engine
def test_snakemake_repeats_rules_over_all_runs(snakemake_jobs: dict[str, list[dict[str, Any]]]) -> None:
    run = PARAMS["run"]
    for name, stage in STAGES.items():
        expected = 1
        for key in stage.per:
            expected *= len(run[f"{key}s"])
        assert len(snakemake_jobs[name]) == expected, name


@pytest.mark.engine
def test_rule_all_lists_every_output(snakemake_jobs: dict[str, list[dict[str, Any]]]) -> None:
    (target,) = snakemake_jobs["all"]
    made = {path for name, jobs in snakemake_jobs.items() if name != "all" for job in jobs for path in job["output"]}
    assert target["input"] == made


DRY_RUNS = """
import os, sys
from snakemake.cli import main

for folder in sys.argv[1:]:
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        main(["-n", "--nocolor", "--cores", "1", "data/prepared"])  # ends the process
    os.waitpid(child, 0)
"""
"""In each of the folders, with one import of Snakemake, which takes longer than what it then does."""


@pytest.mark.engine
def test_snakemake_depends_on_the_files_of_a_source_of_ones_own(tmp_path: Path) -> None:
    def project(name: str, *folders: str, **data: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for linked in ("Snakefile", "workflow", "sumnas"):
            (folder / linked).symlink_to(ROOT / linked)
        for inner in folders:
            (folder / inner).mkdir(parents=True)
        (folder / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "data": data}))
        return folder

    def inputs(folder: Path) -> set[str]:
        said = (folder / "said").read_text()
        found = re.search(r"rule prepare_data:\n    input: (.*)", said)
        assert found, said
        return {path for path in found[1].split(", ") if not path.endswith(".py")}

    pictures = {f"raw/{split}/{name}" for split in ("train", "test") for name in ("ant", "bee")}
    absent = project("absent", source="npz", path="own.npz")
    there = project("there", source="npz", path="own.npz")
    (there / "own.npz").touch()
    folders = project("folders", *pictures, source="imagefolder", path="raw")
    (folders / "raw/train/note.txt").touch()
    known = project("known", *pictures, source="CIFAR10", path="raw")
    command = [sys.executable, "-c", DRY_RUNS, absent, there, folders, known]
    subprocess.run(command, check=True, timeout=240)
    assert inputs(absent) == set()  # not there: prepare_data tells what to do
    assert inputs(there) == {"own.npz"}
    assert inputs(folders) == pictures
    assert inputs(known) == set()  # its checksum says what it is


def test_every_stage_declares_the_blocks_it_reads() -> None:
    """What the scripts take from `job.params` is what they declare, plus what `Job` takes for them."""
    through = {
        "job.device": {"device"}, "job.data(": {"device"}, "job.space()": {"space"},
        "inputs.supernet(": {"space", "device"}, "inputs.predictor(": {"space", "device", "calibration", "evaluation"},
        "job.paths(": {"shards"},
        "Fit(data, job.params)": {f"adaptation_{key}" for key in ("steps", "learning_rate", "batch_size")},
    }  # fmt: skip
    for name, stage in STAGES.items():
        text = (ROOT / f"workflow/{name}.py").read_text()
        used = set(re.findall(r"job\.params\.(\w+)", text)) - {"digest", "select", "plain"}
        for call, blocks in through.items():
            used |= blocks if call in text else set()
        declared = set()
        for block in stage.blocks:
            head, _, tail = block.partition(".")
            declared.add(tail if tail and head != "methods" else head)
        if "job.params.plain()" in text:  # all that is declared
            used |= declared - {"threads"}
        declared = {"method" if b == "methods" and name != "summarize" else b for b in declared}
        assert used == declared - {"threads"}, name
        # Whoever computes fixes the number of threads, which changes rounding.
        assert ("device" in declared) == ("threads" in declared), name


def test_observers_exist_and_make_no_result() -> None:
    later = {"sumnas/report.py"}
    for path in sources.OBSERVERS:
        assert (ROOT / path).is_file() or path in later, path
    reached = {path for name in STAGES for space in spaces.names() for path in sources.of_stage(name, space)}
    assert not reached & sources.OBSERVERS
    everything = {str(p.relative_to(ROOT)) for folder in ("sumnas", "workflow") for p in (ROOT / folder).rglob("*.py")}
    strategies = {f"sumnas/methods/{name}.py" for name in sources.strategies()}
    helpers = {
        "workflow/check.py",
        "workflow/lockfile.py",
        "workflow/means.py",
        "workflow/names.py",
        "workflow/pieces.py",
        "workflow/preset.py",
        "workflow/readme.py",
        "workflow/train_one.py",
    }
    unused = everything - reached - sources.OBSERVERS - strategies - helpers
    assert not unused, f"neither a source of some stage nor an observer: {unused}"


def test_strategies_do_not_import_each_other() -> None:
    """`describe_method` takes the digest of one file: what it imports must be a dependency of the training."""
    own = {f"sumnas/methods/{name}.py" for name in sources.strategies()}
    for path in own:
        assert not (sources.closure(path) & own) - {path}
