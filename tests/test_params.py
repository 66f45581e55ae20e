"""params.yaml: what is wrong is said in one line that names file, key, value and remedy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sumnas import params
from sumnas.errors import UserError
from workflow import check, preset
from workflow.stages import NAMED, STAGES

ROOT = Path(__file__).resolve().parents[1]
Blocks = dict[str, Any]


def problems(tmp_path: Path, change: Callable[[Blocks], object]) -> list[str]:
    """Return what load says of the default settings after a change."""
    blocks = yaml.safe_load((ROOT / "params.yaml").read_text())
    change(blocks)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(blocks))
    with pytest.raises(UserError) as error:
        params.load(path, NAMED)
    return [line.removeprefix(f"{path}: ") for line in str(error.value).splitlines()]


CASES: dict[str, tuple[Callable[[Blocks], object], str]] = {
    "unknown key": (
        lambda b: b["supernet"].update(epohcs=1),
        "supernet.epohcs: unknown key; did you mean 'supernet.epochs'",
    ),
    "unknown nested key": (
        lambda b: b["retrain"]["recipe"].update(epoch=1),
        "retrain.recipe.epoch: unknown key; did you mean 'retrain.recipe.epochs'",
    ),
    "a policy for arrays": (
        lambda b: b["retrain"]["recipe"]["augmentation"].update(auto_augment="imagenet"),
        "retrain.recipe.augmentation.auto_augment: is for data.source: imagefolder only; set it to null",
    ),
    "a rectangle for arrays": (
        lambda b: b["supernet"]["augmentation"].update(resized_crop=0.1),
        "supernet.augmentation.resized_crop: is for data.source: imagefolder only; set it to null",
    ),
    "dropout where there is none": (
        lambda b: b["benchmark"]["pool"]["recipe"].update(dropout=0.2),
        "benchmark.pool.recipe.dropout = 0.2: networks of nasbench201 have none; set it to 0",
    ),
    "a warm-up that leaves nothing": (
        lambda b: b["retrain"]["recipe"].update(warmup_epochs=20),
        "warmup_epochs = 20 leaves none of 20 epochs for the schedule; lower it",
    ),
    "unknown block": (lambda b: b.update(serach={}), "serach: unknown block; did you mean 'search'"),
    "missing block": (lambda b: b.pop("ranking"), "ranking: missing block"),
    "a key that an engine looks up": (
        lambda b: b["evaluation"].pop("adaptation_steps"),
        "evaluation.adaptation_steps: missing; write it out, also where its default is meant: adaptation_steps: 0",
    ),
    "a source without pool: null": (
        lambda b: b.update(benchmark={"source": "nats", "nats": {"path": "x"}}),
        "benchmark.pool: missing; write it out, also where its default is meant: pool: null",
    ),
    "lockstep in several processes": (
        lambda b: b["supernet"].update(engine="lockstep", processes=2) or b["run"].update(methods=["sumnas-k2"]),
        "supernet.processes = 2: lockstep runs all paths in one process; set supernet.engine: auto",
    ),
    "more processes than images of a batch": (
        lambda b: b["retrain"].update(processes=1000),
        "retrain.processes = 1000: more than the 64 images of retrain.recipe.batch_size",
    ),
    "neither of two kinds": (
        lambda b: b["retrain"].update(processes=0),
        "retrain.processes = 0: must be 'auto', or greater than or equal to 1",
    ),
    "neither a number nor a list": (
        lambda b: b["benchmark"]["pool"].update(architectures="x"),
        "benchmark.pool.architectures = 'x': must be a valid integer, unable to parse string as an integer, or a valid "
        "list",
    ),
    "processes that make no whole groups": (
        lambda b: b["supernet"].update(processes=3, split_batch=2),
        "supernet.processes = 3: supernet.split_batch = 2 of them share a batch; set a multiple of it",
    ),
    "a batch split too far": (
        lambda b: b["supernet"].update(split_batch=65),
        "supernet.split_batch = 65: more than the 64 images of supernet.batch_size",
    ),
    "orbits of fitted sub-models": (
        lambda b: b["search"].update(engine="lockstep") or b["evaluation"].update(adaptation_steps=2),
        "search.engine = 'lockstep': evaluation.adaptation_steps = 2, and sub-models are fitted one by one; set "
        "search.engine: auto",
    ),
    "wrong type": (lambda b: b["supernet"].update(epochs="ten"), "supernet.epochs = 'ten': must be a valid integer"),
    "out of range": (
        lambda b: b["supernet"].update(epochs=0),
        "supernet.epochs = 0: must be greater than or equal to 1",
    ),
    "unknown strategy": (
        lambda b: b["methods"]["spos"].update(strategy="sumnos"),
        "methods.spos.strategy = 'sumnos': no such method; did you mean 'sumnas'?",
    ),
    "unknown space": (lambda b: b["space"].update(name="nasbench"), "space.name = 'nasbench': no such space"),
    "unlisted method": (lambda b: b["run"].update(methods=["spoz"]), "run.methods: spoz: unknown method; did you mean"),
    "a dot in a name": (lambda b: b["methods"].update({"a.b": {}}), "methods.a.b: a method's name is lower case"),
    "shards": (lambda b: b["run"].update(shards=[1, 2]), "run.shards = [1, 2]: must count from 0"),
    "a seed twice": (lambda b: b["run"].update(seeds=[0, 0]), "run.seeds = [0, 0]: names one twice"),
    "a limit nothing meets": (
        lambda b: b["search"].update(limits=[0.001]),
        "search.limits = 0.001: no architecture has so few MACs; the smallest has",
    ),
    "more architectures than exist": (
        lambda b: b["benchmark"]["pool"].update(architectures=20000),
        "benchmark.pool.architectures = 20000: the space has only 15625",
    ),
    "more samples than the pool": (
        lambda b: b["sampling"].update(strategy="macs", count=99),
        "sampling.count = 99: the benchmark has only 40",
    ),
    "a set that is not fetched": (
        lambda b: b["data"].update(source="STL10"),
        "data.source = 'STL10': must be 'digits', 'npz', 'imagefolder', 'CIFAR10', 'CIFAR100', 'FashionMNIST', "
        "'KMNIST', 'MNIST' or 'SVHN'; images of any other set come in as source npz (arrays in one file) or image",
    ),
    "a list of sources": (lambda b: b["data"].update(source=["npz"]), "data.source = ['npz']: must be 'digits', 'npz'"),
    "no images left": (lambda b: b["data"].update(test=0.9), "data.validation + data.test = 1.1: must be below 1"),
    "no table": (lambda b: b["benchmark"].update(source="table"), "no block benchmark.table"),
    "image size": (lambda b: b["space"].update(image_size=6), "space.image_size = 6: must be a multiple of 4"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_named(case: str, tmp_path: Path) -> None:
    change, expected = CASES[case]
    lines = problems(tmp_path, change)
    assert len(lines) == 1, lines
    assert expected in lines[0]


def test_several_mistakes_have_a_line_each(tmp_path: Path) -> None:
    def change(blocks: Blocks) -> None:
        blocks["supernet"] |= {"epochs": -1, "probs": 1}
        blocks["search"]["population"] = "x"

    assert len(problems(tmp_path, change)) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [("run: 1\nrun: 2\n", "'run' is given twice"), ("a: [1\n", "line"), ("- 1\n", "must hold"), ("", "must hold")],
)  # fmt: skip
def test_what_is_no_settings_file(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        params.load(path)
    with pytest.raises(UserError, match="no such file"):
        params.load(tmp_path / "absent.yaml")


def test_presets_are_valid_and_the_default_is_quick() -> None:
    for path in (ROOT / "presets").glob("*.yaml"):
        params.load(path, NAMED)
    quick = params.load(ROOT / "presets/quick.yaml")
    assert quick.digest() == params.load(ROOT / "params.yaml").digest()


def test_a_stage_gets_only_what_it_declares() -> None:
    everything = params.load(ROOT / "params.yaml")
    chosen = everything.select(["run.threads", "space", "methods.sumnas-k2"])
    assert chosen.threads == 1 and chosen.method.adaptation_steps == 2
    with pytest.raises(AttributeError, match="does not declare params block 'data'"):
        _ = chosen.data
    assert set(chosen.plain()) == {"threads", "space", "method"}


def test_the_digest_depends_on_values_alone(tmp_path: Path) -> None:
    blocks = yaml.safe_load((ROOT / "params.yaml").read_text())
    blocks["methods"]["spos"]["weight_decay"] = 4e-5  # its default, written out
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(dict(reversed(list(blocks.items())))))
    assert params.load(path).digest() == params.load(ROOT / "params.yaml").digest()
    blocks["methods"]["spos"]["weight_decay"] = 5e-5
    path.write_text(yaml.safe_dump(blocks))
    assert params.load(path).digest() != params.load(ROOT / "params.yaml").digest()


def test_an_engine_of_scoring_that_is_not_named_leaves_digests_as_they_were(tmp_path: Path) -> None:
    blocks, path, digests = yaml.safe_load((ROOT / "params.yaml").read_text()), tmp_path / "params.yaml", []
    for named in ({}, {"engine": "auto"}, {"engine": "sequential"}, {"engine": "lockstep"}):
        blocks["search"].pop("engine", None)
        blocks["search"] |= named
        path.write_text(yaml.safe_dump(blocks))
        digests.append(params.load(path).select(STAGES["search"].blocks).digest())
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_make_check_and_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/quick.yaml").write_bytes((ROOT / "presets/quick.yaml").read_bytes())

    monkeypatch.chdir(tmp_path)

    def write(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["preset", *words])
        return preset.main()

    # One as the process that `make preset` starts; `make check` is one in tests/workflow/test_mistakes.py.
    command = [sys.executable, "-m", "workflow.preset", "quik"]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    unknown = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert unknown.returncode == 1 and "did you mean NAME=quick?" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    assert write("quick") == 0
    assert check.main() == 0
    path = tmp_path / "params.yaml"
    path.write_text(path.read_text().replace("epochs: 15", "epochs: 0"))
    capsys.readouterr()
    assert check.main() == 1 and "supernet.epochs = 0" in capsys.readouterr().err
    assert write("quick") == 1 and "FORCE=1" in capsys.readouterr().err
    assert write("quick", "--force") == 0
    assert check.main() == 0
