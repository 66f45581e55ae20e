"""Documents name only what exists: functions, files, settings, links."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import yaml

from benchmarks import first_minutes
from sumnas import files, params
from workflow.readme import replaced
from workflow.stages import NAMED, STAGES

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    p.relative_to(ROOT) for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data/README.md"]
)  # fmt: skip


def resolve(name: str) -> object:
    """Import `package.module.object.attribute`; AttributeError where some part of it does not exist."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_names_of_the_code_exist(document: Path) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for name in re.findall(r"`((?:sumnas|workflow)\.[\w.]+)`", text):
        resolve(name)
    for command in re.findall(r"python -m ((?:workflow|sumnas)\.[\w.]+)", text):
        importlib.import_module(command.rstrip("."))
    for target in re.findall(r"\bmake ((?:[a-z-]+ ?)+)`", text):
        for word in target.split():
            assert re.search(rf"^{word}:", (ROOT / "Makefile").read_text(), re.M), f"make {word}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not urlparse(target).scheme and not target.startswith("#"):
            assert (ROOT / document.parent / target.split("#")[0]).exists(), f"{document}: {target}"


def examples() -> dict[str, dict[str, Any]]:
    """Return the examples of the pages that are whole blocks of params.yaml, by page and line."""
    found = {}
    for path in sorted(ROOT.glob("docs/*.md")):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```yaml\n(.*?)^```$", text, re.M | re.S):
            blocks = yaml.safe_load(match[1])
            if {"benchmark", "further", "data"} & set(blocks):
                found[f"{path.name}:{text.count(chr(10), 0, match.start()) + 1}"] = blocks
    return found


EXAMPLES = examples()


def test_the_pages_have_examples_of_every_source() -> None:
    sources = {blocks[key]["source"] for blocks in EXAMPLES.values() for key in ("benchmark", "data") if key in blocks}
    assert sources >= {"nats", "nasbench201", "table", "npz", "imagefolder", "CIFAR10"}
    assert any("further" in blocks for blocks in EXAMPLES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_can_be_pasted_into_the_default_settings(name: str, tmp_path: Path) -> None:
    blocks = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**blocks, **EXAMPLES[name]}), encoding="utf-8")
    loaded = params.load(tmp_path / "params.yaml", NAMED)
    assert set(EXAMPLES[name]) <= set(loaded.plain())


def test_the_examples_for_slurm_name_real_stages() -> None:
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    examples = [
        yaml.safe_load(b) for b in re.findall(r"^```yaml\n(.*?)^```$", text, re.M | re.S) if "set-resources:" in b
    ]
    assert len(examples) == 2
    for lines in examples:
        assert set(lines) - {"set-threads"} <= set(profile)
        assert set(lines["set-resources"]) == set(profile["set-resources"]) <= set(STAGES)
        for wanted in lines["set-resources"].values():
            assert set(wanted) <= {"gpu", *profile["default-resources"]}
    # For the preset whose pictures are decoded: where there is a GPU there are the processors of its workers, too.
    preset = yaml.safe_load((ROOT / "presets/imagenet-mobilenet.yaml").read_text(encoding="utf-8"))
    on_gpu = {stage for stage, wanted in lines["set-resources"].items() if wanted["gpu"]}
    assert lines["set-threads"] == dict.fromkeys(on_gpu, preset["run"]["workers"])


def test_the_pages_cost_of_tracking_is_the_measured_one() -> None:
    found = files.read_json(ROOT / "benchmarks/results/tracking_cost.json")
    text = " ".join((ROOT / "docs/tracking.md").read_text(encoding="utf-8").split())
    clock, processor = (
        [100 * (value - 1) for value in (found[name]["ratio"], *found[name]["interval_95"])]
        for name in ("clock", "processor_time")
    )
    assert "{:.1f} % more by the clock (95 % interval {:.1f} to {:.1f})".format(*clock) in text
    assert f"{processor[0]:.1f} % more processor time" in text
    assert found["target"] == 1.05 and found["clock"]["ratio"] < found["target"] and found["within_target"]


def test_the_first_minutes_are_the_measured_ones() -> None:
    found = files.read_json(first_minutes.RESULT)
    text = first_minutes.PAGE.read_text(encoding="utf-8")
    assert replaced(text, first_minutes.BLOCK, first_minutes.table(found)) == text
    assert [row["do"] for row in found["steps"]] == [step.shown for step in (*first_minutes.STEPS, first_minutes.UI)]
    assert 0 < sum(row["seconds"] for row in found["steps"]) < 1200


def test_every_stages_memory_is_measured_and_flat_over_epochs() -> None:
    found = files.read_json(ROOT / "benchmarks/results/memory.json")
    for preset in ("quick", "cifar10-cpu"):
        assert set(found[preset]["stages"]) == set(STAGES)
        assert all(stage["peak_memory_mb"] > 0 for stage in found[preset]["stages"].values())
    for preset, kind in (("quick", "epochs"), ("quick", "retraining"), ("cifar10-cpu", "epochs")):
        measured = found[preset][kind]
        assert len(measured["resident_mb"]) == measured["epochs"] and measured["met"]
        assert measured["rise_of_second_half"] <= measured["target"] == 0.02


def test_every_entry_of_the_slurm_profile_has_its_reason() -> None:
    lines = (ROOT / "workflow/profiles/slurm/config.yaml").read_text(encoding="utf-8").splitlines()
    entries = [n for n, line in enumerate(lines) if re.match(r"( {2})?[a-z_-]+:", line)]
    of_gpus = [n for n in entries if lines[n].endswith("{ gpu: 0 }")]  # one comment for all of them
    assert len(entries) > 20 and {lines[n].split(":")[0].strip() for n in of_gpus} <= set(STAGES)
    for number in set(entries) - set(of_gpus):
        assert lines[number - 1].lstrip().startswith("#"), f"no comment above {lines[number]!r}"


def test_every_strategy_has_its_paragraph_and_formula() -> None:
    from sumnas.methods import base

    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.M)
    for name in base.names():
        assert f"| `{name}` |" in text, name
        (own,) = [s for s in sections if re.search(rf"^`sumnas\.methods\.{name}\.\w+`", s, re.M)]
        assert re.search(r"^    \S", own, re.M), f"{name}: no formula"
        fields = set(base.module_of(name).Settings.model_fields)
        named = set(re.findall(r"`([a-z_]+)(?:: [^`]*)?`", own))
        columns = set(re.findall(r"`([a-z_]+)", own.partition("Followed")[2]))
        assert named <= fields | columns | {"skip_connect", "tau"}, f"{name}: {named - fields - columns}"


def test_the_methods_page_names_real_settings() -> None:
    from sumnas.methods.sumnas import Settings

    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    table = text[text.index("| question |") :].split("\n\n")[0]
    blocks = yaml.safe_load((ROOT / "params.yaml").read_text())
    names = re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)(?::[^`]*)?`", table)
    assert len(names) > 10
    values = {"carry", "reuse", "mean", "sum", "test", "false", "kaiming"}
    for name in set(names) - values:
        block, _, key = name.rpartition(".")
        assert key in (blocks[block] if block else Settings.model_fields), name


def undocumented(path: Path) -> list[str]:
    """Return the public constants and type aliases of a module without a docstring below them, as `path:line: name`.

    Not those that click makes: their help says what they are.
    """
    found, body = [], ast.parse(path.read_text(encoding="utf-8")).body
    for node, below in zip(body, [*body[1:], ast.Pass()], strict=True):
        made = getattr(node, "value", None)
        of_click = isinstance(made, ast.Call) and ast.unparse(made.func).startswith("click.")
        if not isinstance(node, ast.Assign | ast.AnnAssign) or of_click:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name) and n.id[0] != "_"]
        if names and not (isinstance(below, ast.Expr) and isinstance(getattr(below.value, "value", None), str)):
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {', '.join(names)}")
    return found


def test_every_public_constant_has_a_docstring() -> None:
    assert [line for path in sorted((ROOT / "sumnas").rglob("*.py")) for line in undocumented(path)] == []
