"""The documentation as a site, checked without MkDocs: every page has its place, every link of a page leads to one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import posixpath
import re
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml

import sumnas
from docs.site import pages

ROOT = Path(__file__).resolve().parents[1]


CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
NAV = [page for entry in CONFIG["nav"] for page in entry.values()]


def source(page: str) -> Path:
    """The file that a page is made of."""
    made = {address: path for path, address in pages.PAGES.items()}
    return ROOT / made.get(page, f"docs/{page}")


def text(page: str) -> str:
    """What MkDocs gets of a page."""
    found = source(page).read_text(encoding="utf-8")
    return pages.turned(pages.from_notebook(found) if source(page).suffix == ".ipynb" else found, page)


def anchors(markdown: str) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    bare = re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", bare, re.M)
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", ""))).strip("-").lower()
        for heading in headings
    }


def test_every_document_is_in_the_navigation_once() -> None:
    documents = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert sorted(NAV) == sorted(documents | set(pages.PAGES.values()))
    assert all((ROOT / hook).exists() for hook in CONFIG["hooks"])


@pytest.mark.parametrize("page", NAV)
def test_links_of_a_page_lead_to_pages(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text(page), flags=re.M | re.S)):
        if urlparse(target).scheme:
            continue
        path, _, anchor = target.partition("#")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        assert source(there).exists(), target
        assert not there.endswith(".md") or there in NAV, target
        assert not anchor or anchor in anchors(text(there)), target


def test_links_are_turned() -> None:
    turned = pages.turned
    assert turned("[a](docs/data.md#own) ![b](docs/images/x.png)", "index.md") == "[a](data.md#own) ![b](images/x.png)"
    assert turned("```\nx[0](y.md)\n```\n[a](docs/data.md)", "index.md") == "```\nx[0](y.md)\n```\n[a](data.md)"
    assert turned("[a](../README.md) and [b](../constraints.txt)", "data.md") == "[a](index.md) and b"
    assert turned("[a](docs/results/quick), [b](https://x.org/docs/y)", "index.md") == "a, [b](https://x.org/docs/y)"
    assert turned("[a](#own)", "data.md") == "[a](#own)"
    assert turned("[n](notebooks/quickstart.ipynb)", "install.md") == "[n](quickstart.md)"


def test_flow_charts_become_text() -> None:
    chart = "a\n```mermaid\nflowchart LR\n    a --> b --> c\n    b --> d\n```\n```text\na --> b\n```\n"
    assert pages.without_diagrams(chart) == "a\n```text\na → b → c\nb → d\n```\n```text\na --> b\n```\n"
    for page in NAV:  # whatever is left would have a script fetched
        assert "```mermaid" not in pages.without_diagrams(source(page).read_text(encoding="utf-8")), page


def test_every_source_that_is_named_has_its_place() -> None:
    page = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) (\d{4}) \|.*https://", page[page.index("## Sources") :], re.M)
    named = set()
    for path in [*(ROOT / "sumnas").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"\b([A-Z]\w+ (?:et al\.|& [A-Z]\w+)),? (?:[A-Z]\w+ )?\(?(\d{4})\b", text))
    assert len(named) >= 13 and named <= set(rows)


def test_the_modules_with_pages_are_those_with_public_names() -> None:
    wanted = set()
    for found in pkgutil.walk_packages(sumnas.__path__, "sumnas."):
        if not found.name.endswith("__main__"):
            members = vars(importlib.import_module(found.name)).items()
            own = [o for n, o in members if not n.startswith("_") and getattr(o, "__module__", "") == found.name]
            if any(inspect.isfunction(o) or inspect.isclass(o) or hasattr(o, "callback") for o in own):
                wanted.add(found.name)
            elif any(hasattr(o, "callback") for n, o in members if not n.startswith("_")):
                wanted.add(found.name)  # commands: functions that click has wrapped
    assert set(pages.modules()) == wanted


def test_a_notebook_becomes_markdown() -> None:
    notebook = (
        '{"cells": [{"cell_type": "markdown", "source": ["# A\\n", "b"]}, {"cell_type": "code", "source": ["1"]}]}'
    )
    assert pages.from_notebook(notebook) == "# A\nb\n\n```python\n1\n```\n"
