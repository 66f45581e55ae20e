"""The `sumnas` command against the library, and its messages."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from sumnas import diagnosis, files, params, seeding, trained
from sumnas.batchnorm import recalibrate
from sumnas.benchmark import table
from sumnas.cli import main
from sumnas.data import Prepared
from sumnas.evaluation import calibration_batches, evaluate
from sumnas.spaces import base

ROOT = Path(__file__).resolve().parents[1]
ONE = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|avg_pool_3x3~1|skip_connect~2|"
OTHER = "|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|"


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    loaded["space"]["channels"] = 2
    loaded["calibration"] |= {"images": 100, "batch_size": 50}
    return loaded


@pytest.fixture
def project(tmp_path: Path, settings: dict[str, Any], digits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings, prepared digits and an untrained supernet."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(digits_folder)
    loaded = params.load(tmp_path / "params.yaml").space
    with seeding.scoped(0, "supernet"):
        supernet = base.build(loaded).supernet()
    files.write_tensors(tmp_path / "weights.safetensors", supernet.state_dict(), {"space": loaded.model_dump()})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def complaint(*arguments: str) -> str:
    (line,) = call(*arguments, code=1).stderr.splitlines()
    assert line.startswith("sumnas: error: ")
    return line


def test_a_score_is_that_of_the_extracted_network(project: Path, digits: Prepared) -> None:
    rows = json.loads(call("score", ONE, OTHER, "--weights", "weights.safetensors", "--json").stdout)
    space, supernet, _ = trained.load(project / "weights.safetensors")
    loaded = params.load(project / "params.yaml")
    for row, text in zip(rows, (ONE, OTHER), strict=True):
        network = space.extract(supernet, space.decode(text))
        recalibrate(network, calibration_batches(digits, loaded.calibration))
        found = evaluate(network, digits.split(loaded.evaluation.split), 100)
        assert row["architecture"] == text and row["split"] == loaded.evaluation.split
        assert row["predicted"] == found.accuracy and row["loss"] == pytest.approx(found.loss, rel=1e-6)


def test_costs_are_those_of_the_space(project: Path) -> None:
    space = base.build(params.load(project / "params.yaml").space)
    a = space.decode(ONE)
    expected = {"architecture": ONE, "macs": space.macs(a), "params": space.params(a)}
    assert json.loads(call("cost", ONE, "--json").stdout) == [expected]
    header, line = call("cost", ONE).stdout.splitlines()
    assert header.split() == ["architecture", "macs", "params"]
    assert line.split() == [ONE, f"{space.macs(a):.4f}", f"{space.params(a):.4f}"]


def test_a_drawing_names_the_operators(project: Path) -> None:
    assert call("draw", ONE, "-o", "cell.svg").stdout == "cell.svg\n"
    text = (project / "cell.svg").read_text(encoding="utf-8")
    ET.fromstring(text)
    assert "nor_conv_3x3" in text and "nor_conv_1x1" in text
    said = json.loads(call("draw", ONE, "-o", "again.svg", "--json").stdout)
    assert said == {"path": "again.svg", "architecture": ONE}
    assert (project / "again.svg").read_text(encoding="utf-8") == text


def test_a_table_is_imported(project: Path, settings: dict[str, Any]) -> None:
    assert "nothing to import" in complaint("import-benchmark")
    (project / "mine.csv").write_text(f"arch,accuracy,ms\n{ONE},61.5,3\n{OTHER},40.25,1\n", encoding="utf-8")
    own = {"path": "mine.csv", "architecture": "arch", "accuracy": "accuracy", "costs": {"latency": "ms"}}
    changed = {**settings, "benchmark": {**settings["benchmark"], "source": "table", "table": own}}
    (project / "params.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    assert call("import-benchmark", "-o", "out.csv").stdout == "2 architectures -> out.csv\n"
    said = json.loads(call("import-benchmark", "-o", "again.csv", "--json").stdout)
    assert said == {"path": "again.csv", "architectures": 2, "absent": 0}
    space = base.build(params.load(project / "params.yaml").space)
    read = table.read(project / "out.csv", space)
    assert dict(zip(map(space.encode, read.architectures), read.costs["latency"], strict=True)) == {ONE: 3, OTHER: 1}


def test_presets_are_listed_with_what_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = {row["preset"]: row for row in json.loads(call("presets", "--json").stdout)}
    assert set(rows) == {path.stem for path in (ROOT / "presets").glob("*.yaml")}
    assert rows["cifar10-paper"]["epochs"] == 200 and rows["quick"]["data"] == "digits"
    assert rows["quick"]["methods"] == ["spos", "fairnas", "sumnas-k2", "sumnas-k4"]
    lines = {line.split()[0]: line for line in call("presets").stdout.splitlines()}
    assert set(lines) == {"preset", *rows}
    assert lines["quick"].endswith("  spos fairnas sumnas-k2 sumnas-k4")
    assert len(rows["lr-sensitivity"]["methods"]) == 48 and lines["lr-sensitivity"].endswith(" and 45 more")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("cost", "|none~0|"), "has 1 edges"),
        (("cost", ONE, "--params", "nowhere.yaml"), "nowhere.yaml"),
        (("score", ONE, "--weights", "nowhere.safetensors"), "nowhere.safetensors: no such file"),
        (("score", ONE, "--weights", "params.yaml"), "params.yaml: damaged"),
        (("score", ONE, "--weights", "weights.safetensors", "--prepared", "nowhere"), "nowhere"),
        (("draw", ONE, "-o", "params.yaml/x.svg"), "params.yaml"),
        (("presets", "--folder", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(project: Path, arguments: tuple[str, ...], text: str) -> None:
    before = sorted(project.iterdir())
    assert text in complaint(*arguments)
    assert sorted(project.iterdir()) == before


def test_weights_of_something_else_are_refused(project: Path) -> None:
    import torch

    files.write_tensors(project / "other.safetensors", {"a": torch.zeros(2)}, {"space": {"name": "nasbench201"}})
    said = complaint("score", ONE, "--weights", "other.safetensors")
    assert "other.safetensors: not a supernet of this version's" in said


def test_the_doctor_names_what_is_missing(
    project: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(project / "work"))
    found = {row["what"]: row for row in json.loads(call("doctor", "--json").stdout)}
    assert found["torch"]["state"] in ("ok", "note") and found["settings"]["state"] == "ok"
    assert (
        found["prepared data"]["detail"] == "540 test, 897 train, 360 validation" and found["raw data"]["state"] == "ok"
    )
    (project / "constraints.txt").write_text("torch==0.1\n", encoding="utf-8")
    settings = {**settings, "run": {**settings["run"], "device": "cuda"}}
    settings["data"] = {"source": "npz", "path": "data/raw/none.npz", "validation": 0.2, "seed": 0}
    (project / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    lines = call("doctor", code=1).stdout.splitlines()
    assert any(line.startswith("note") and "torch: " in line and "made with 0.1" in line for line in lines)
    assert any(line.startswith("missing") and "data/raw/none.npz: not there" in line for line in lines)
    (project / "params.yaml").write_text("run: 1\n", encoding="utf-8")
    assert any(finding == ("settings", "missing", finding.detail) for finding in diagnosis.all_of(Path("params.yaml")))


def test_the_doctor_speaks_of_the_lock_file_where_dvc_can_be_asked(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(project / "work"))
    Path("dvc.lock").touch()
    assert "dvc.lock: half written" in call("doctor", code=1).stdout
    monkeypatch.setitem(sys.modules, "dvc.schema", None)  # as where DVC is not installed: to be named, not a traceback
    assert "dvc.lock" not in call("doctor").stdout


def test_every_command_speaks_json_to_programs() -> None:
    without = {name for name, c in main.commands.items() if not any("--json" in p.opts for p in c.params)}
    assert without == set() and len(main.commands) >= 9


def test_the_overview_of_commands_is_whole_sentences() -> None:
    said = CliRunner().invoke(main, ["--help"], terminal_width=80).stdout
    commands = said.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in commands] == sorted(main.commands)
    assert all(line.endswith(".") and not line.endswith("..") for line in commands)
    assert '\n    eval "$(_SUMNAS_COMPLETE=bash_source sumnas)"\n' in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [("sumnas sc", "plain,score\n"), ("sumnas score --we", "plain,--weights\n"), ("sumnas draw -o x", "file,x\n")],
)
def test_words_are_completed(
    words: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setenv("_SUMNAS_COMPLETE", "bash_complete")
    with pytest.raises(SystemExit, match="^0$"):
        main(prog_name="sumnas")
    assert capsys.readouterr().out == expected


def test_help_needs_no_torch() -> None:
    code = "import sys; from sumnas.cli import main\n"
    code += "try: main(['score', '--help'])\nfinally: assert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0 and "--weights" in said.stdout and said.stderr == ""
