"""What leaves the clone: wheel and source distribution hold what they should, and the descriptions of it agree."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import browser

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILD = "import setuptools.build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone's files, with wheel and source distribution in dist/: building leaves files behind."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("needs setuptools, which builds the distributions")
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone: git says which files are the project's")
    folder = tmp_path_factory.mktemp("tree")
    for name in clone():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder, check=True, capture_output=True, timeout=120)
    return folder


def clone() -> set[str]:
    """The files that git has; what else lies in a clone is its owner's."""
    command = ["git", "ls-files", "-z", "--cached"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout
    return {name for name in listed.split("\0") if name and os.path.lexists(ROOT / name)}


@pytest.fixture(scope="module")
def installed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, which is what installing it comes to."""
    (wheel,) = (tree / "dist").glob("*.whl")
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_has_the_packages_and_nothing_else(installed: Path) -> None:
    wanted = {name for name in clone() if name.startswith("sumnas/") or re.fullmatch(r"workflow/\w+\.py", name)}
    found = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    assert {name for name in found if ".dist-info/" not in name} == wanted
    assert "sumnas/py.typed" in wanted and "sumnas/templates/report.html.j2" in wanted
    for name in wanted:
        assert (installed / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_the_source_distribution_is_the_clone(tree: Path) -> None:
    (source,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        found = {member.name.partition("/")[2] for member in archive if not member.isdir()}
    found = {name for name in found if not name.startswith("sumnas.egg-info/")} - {"PKG-INFO", "setup.cfg"}
    # The link is there as what it leads to.
    wanted = clone() - {"slurm"} | {"slurm/config.yaml"}
    assert found == wanted


def test_every_module_is_imported_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    script = (
        "import importlib, pkgutil, sumnas, workflow\n"
        "for package in (sumnas, workflow):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not found.name.endswith('__main__'):\n"
        "            print(importlib.import_module(found.name).__file__)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-W", "error", "-c", script]
    lines = subprocess.run(
        command, cwd=tmp_path, env=env, check=True, capture_output=True, text=True, timeout=120
    ).stdout
    found = set(map(Path, lines.split()))
    modules = {p for name in ("sumnas", "workflow") for p in (installed / name).rglob("*.py")}
    assert found == {p for p in modules if p.name != "__main__.py"} - {installed / "sumnas/__init__.py"} - {
        installed / "workflow/__init__.py"
    }


def test_the_command_of_the_wheel_runs(installed: Path, tmp_path: Path) -> None:
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert re.search(r"^sumnas = sumnas\.cli:main$", entry.read_text(), re.M)
    env = {**os.environ, "PYTHONPATH": str(installed)}
    for words, wanted in (["--help"], "doctor"), (["--version"], f"version {PROJECT['version']}"):
        command = [sys.executable, "-W", "error", "-m", "sumnas.cli", *words]
        said = subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, text=True, timeout=60)
        assert wanted in said.stdout


def test_every_requirement_has_its_version_among_the_pins() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"dev", "docs", "export", "gpu"}
    for text in [*PROJECT["dependencies"], *(text for extra in extras.values() for text in extra)]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            assert requirement.extras and requirement.extras <= set(extras)
            continue
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text


def test_version_and_date_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    released = re.search(r"^## (\d\S*) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert released and released.groups() == (citation["version"], str(citation["date-released"]))


def test_the_services_files_say_what_this_tree_says() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    names = " ".join(browser.NAMES)  # where none of them is found, it installs one
    assert f"type -P {names})" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    (python,) = (step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", ""))
    assert PROJECT["requires-python"] == f">={python}"
    for name in ("Dockerfile", "apptainer.def"):
        (version,) = re.findall(r"^F(?:ROM|rom:) python:([\d.]+)-", (ROOT / name).read_text(encoding="utf-8"), re.M)
        assert version == python, name
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text(encoding="utf-8"))["updates"]
    assert {entry["package-ecosystem"] for entry in updates} == {"pip", "github-actions", "docker"}
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels"}
        names = [field["id"] for field in form["body"]]
        assert len(set(names)) == len(names) > 0
        assert {field["type"] for field in form["body"]} <= {"textarea", "input", "dropdown"}
        assert all(field["attributes"]["label"] for field in form["body"])


def test_the_containers_take_what_is_there() -> None:
    definition = (ROOT / "apptainer.def").read_text(encoding="utf-8")
    taken = re.findall(r"^    (\S+) /opt/sumnas/(\S+)$", definition.partition("%post")[0], re.M)
    assert all(source == target and (ROOT / source).exists() for source, target in taken)
    needed = {"pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"], "sumnas", "workflow"}
    assert {source for source, _ in taken} == needed
    # As `make lint` has it: what a hook runs is installed by the project itself.
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    entries = {hook["entry"].split()[0] for hook in hooks[0]["hooks"]}
    assert entries == {"ruff", "snakefmt", "mypy", "python"}
