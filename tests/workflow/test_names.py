"""Names from params.yaml reach neither a shell nor a path outside of the results, by either engine."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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


@functools.cache
def looked_at() -> dict[str, Any]:
    """The two blocks that `names` reads, to be copied: the whole file takes long to write and read each time."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    return {key: params[key] for key in ("run", "methods")}


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
@pytest.mark.parametrize("key", ["methods", "seeds", "shards", "method"])
def test_what_is_no_word_is_refused(
    key: str, name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    params = copy.deepcopy(looked_at())
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
