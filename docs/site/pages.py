"""What MkDocs needs to know beyond docs/: pages made of other files, and where links lead on the site (mkdocs.yml)."""

from __future__ import annotations

import ast
import json
import posixpath
import re
import textwrap
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

if TYPE_CHECKING:
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "docs/notebooks/quickstart.ipynb": "quickstart.md",
}
"""Files of the clone that become pages, by their page's address."""
CODE = re.compile(r"(^```.*?^```)", re.M | re.S)
DIAGRAM = re.compile(r"^```mermaid\nflowchart LR\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_config(config: MutableMapping[str, Any]) -> None:
    """Let the modules' pages follow the pages that mkdocs.yml names."""
    config["nav"].append({"API": [{name: address(name)} for name in modules()]})


def on_files(files: Files, config: Any) -> None:
    """Add the pages that are no file in docs/."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=from_notebook(text) if path.endswith(".ipynb") else text))
    for name in modules():
        files.append(File.generated(config, address(name), content=f"::: {name}\n"))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn the links of the clone into links of the site, and diagrams into text."""
    return turned(without_diagrams(markdown), page.file.src_uri)


def modules() -> Iterator[str]:
    """Give the name of every module of the library that has something public to show."""
    for path in sorted((ROOT / "sumnas").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = (node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
        if path.stem != "__main__" and any(not name.startswith("_") for name in found):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def address(name: str) -> str:
    """Return the page of a module."""
    return f"api/{name}.md"


def without_diagrams(markdown: str) -> str:
    """Return a page with the arrows of its flow charts as text: what draws them would be fetched from the network."""
    return DIAGRAM.sub(lambda found: f"```text\n{textwrap.dedent(found[1]).replace('-->', '→')}```", markdown)


def turned(markdown: str, page: str) -> str:
    """Return a page's text with its relative links as they must be on the site.

    A file of the clone that is no page leaves only its text: the site has no copy of it.
    """
    source = next((path for path, made in PAGES.items() if made == page), f"docs/{page}")

    def turn(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, mark, anchor = target.partition("#")
        if urlparse(target).scheme or not path:
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if there in PAGES:
            there = PAGES[there]
        elif there.startswith("docs/") and (ROOT / there).suffix in {".md", ".svg", ".png"}:
            there = there.removeprefix("docs/")
        else:
            return text
        return f"{image}[{text}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{mark}{anchor})"

    parts = CODE.split(markdown)  # at odd places code, in which brackets are no links
    return "".join(part if number % 2 else LINK.sub(turn, part) for number, part in enumerate(parts))


def from_notebook(text: str) -> str:
    """Return a notebook's cells as markdown, code between fences."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"
