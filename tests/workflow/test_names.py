"""Names from params.yaml reach neither a shell nor a path outside of the results, by either engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow.conftest import Clone, changed, make_clone
from workflow import names

ROOT = Path(__file__).resolve().parents[2]
Change = Callable[[dict[str, Any]], None]


def named(key: str, name: Any) -> Change:
    """Return a change that gives a run, a shard or a method this name."""

    def change(params: dict[str, Any]) -> None:
        if key == "method":
            params["methods"][name] = params["methods"]["spos"]
        else:
            params["run"][key] = [name]

    return change


HOSTILE = [
    "0; touch made", "$(touch made)", "`touch made`", "0\ntouch made", "0 | tee made", "../../x", "/tmp/x", "a.b", "",
    {"x; touch made": 1}, ["0; touch made"],
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
@pytest.mark.parametrize("key", ["methods", "seeds", "shards", "method"])
def test_what_is_no_word_is_refused(
    key: str, name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert names.main() == 0
    named(key, name if key != "method" or isinstance(name, str) else repr(name))(params)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert names.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"params.yaml: {'methods' if key == 'method' else f'run.{key}'}: ") and "make check" in line


@pytest.mark.parametrize("content", ["", "[", "run: 1", "run: {methods: x, seeds: [0], shards: [0]}\nmethods: {}"])
def test_what_has_no_names_is_refused(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert names.main() == 1
    Path("params.yaml").write_text(content)
    assert names.main() == 1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A project whose first stage is through: that one has no name in its command, and looks at the settings itself."""
    clone = make_clone(tmp_path_factory.mktemp("names") / "clone")
    clone.env["SUMNAS_TRACKING"] = "off"
    clone.run("dvc", "repro", "prepare_data")
    return clone


@pytest.mark.engine
@pytest.mark.parametrize(("key", "name"), [("shards", "0; touch made"), ("seeds", "0; touch made"),
                                           ("method", "../../../victim")])  # fmt: skip
def test_no_engine_takes_a_name_for_more(prepared: Clone, key: str, name: str) -> None:
    clone = prepared
    victim = clone.folder.parent / "victim.json"  # results/methods/<method>.json leads there
    victim.write_text("somebody else's")
    with changed(clone, named(key, name)):
        ended = [
            clone.run("dvc", "repro", "--keep-going", check=False),
            clone.run("dvc", "repro", *([f"describe_method@{name}"] if key == "method" else []), check=False),
        ]
        if key == "method":  # for Snakemake only methods that are run have a file
            with changed(clone, named("methods", name)):
                ended += [clone.run("snakemake", "--cores", "1", check=False)]
        else:
            ended += [clone.run("snakemake", "--cores", "1", check=False)]
    assert all(process.returncode and "Traceback" not in process.stderr for process in ended)
    assert "params.yaml: " in ended[0].stderr and "run `make check`" in ended[0].stderr
    assert victim.read_text() == "somebody else's"
    assert not [path for path in clone.folder.rglob("made*") if path.is_file()]
