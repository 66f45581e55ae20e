"""The report as a real browser shows it: nothing fetched, nothing complained of, no wider than a telephone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sumnas import files, params
from sumnas.spaces.base import Space
from sumnas.spaces.nasbench201 import NASBench201
from tests import browser, chains
from tests.finished_run import COUNT, Page, write_results
from workflow import summarize
from workflow.stage import Job
from workflow.stages import STAGES

CHAIN = {"image_size": 8, "image_channels": 1, "classes": 10}
OVERFLOW = """[...document.querySelectorAll("body *")].filter(e => !e.closest("svg")
    && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
    .map(e => e.outerHTML.slice(0, 120))"""
WIDTH = "[document.documentElement.scrollWidth, innerWidth]"
MARK = """(i => { const svg = document.querySelectorAll("svg.chart")[i]; svg.scrollIntoView();
    const box = svg.querySelector("circle").getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2]; })"""


def write_report(folder: Path, space: Space, block: dict[str, object] | None = None) -> Path:
    """Write a finished run's files and let `summarize` make the report of them."""
    write_results(folder, space, block)
    stage = STAGES["summarize"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        summarize.main(Job(stage, params.load(Path("params.yaml")).select(stage.blocks), {}))
    return folder / "results/summary/report.html"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, tiny_space: NASBench201) -> dict[str, Path]:
    """A report of cells, and one of chains of blocks."""
    chain = chains.space(**CHAIN)
    return {
        "cells": write_report(tmp_path_factory.mktemp("cells"), tiny_space),
        "chains": write_report(tmp_path_factory.mktemp("chains"), chain, chain.settings.model_dump(mode="json")),
    }


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.running(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.parametrize("kind", ["cells", "chains"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_fetched_said_or_too_wide(
    kind: str, width: int, reports: dict[str, Path], chromium: browser.Browser
) -> None:
    page = chromium.page(width, mobile=width < 500)
    page.open(reports[kind].as_uri())
    assert page.evaluate(WIDTH) == [width, width]
    assert page.evaluate(OVERFLOW) == []
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    x, y = page.evaluate(f"{MARK}(0)")
    page.point(x, y)
    assert page.complaints() == []
    assert page.requests() == [reports[kind].as_uri()]


def test_pointing_at_a_mark_says_what_it_is_and_marks_it_everywhere(
    reports: dict[str, Path], chromium: browser.Browser
) -> None:
    page = chromium.page(1280)
    page.open(reports["cells"].as_uri())
    assert page.evaluate("document.querySelectorAll('circle').length") == 12 * COUNT
    x, y = page.evaluate(f"{MARK}(0)")
    page.point(x, y)
    name, _, rest = page.until("document.querySelector('.told').textContent").partition("\n")
    rows = files.read_csv(reports["cells"].parents[1] / "ranking/sumnas-k2-0/predictions.csv")
    (row,) = [row for row in rows if row["architecture"] == name]
    assert f"true {float(row['reference']):.2f} %, predicted {float(row['predicted']):.2f} %" in rest
    # Four runs, in each the scatter, the ranks and the search's scores: all titles name the same architecture.
    titles = "[...document.querySelectorAll('circle.on title')].map(title => title.textContent.split('\\n')[0])"
    assert page.evaluate(titles) == [name] * 12
    x, y = page.evaluate(f"{MARK}(8)")
    page.click(x, y)
    assert "multiply-adds" in page.until("document.querySelectorAll('.told')[2].textContent")


def test_on_paper_nothing_is_cut_off(reports: dict[str, Path], chromium: browser.Browser) -> None:
    page = chromium.page(690)  # an A4 page between its margins
    page.call("Emulation.setEmulatedMedia", media="print")
    page.open(reports["cells"].as_uri())
    assert page.evaluate(OVERFLOW) == []
    assert page.evaluate("getComputedStyle(document.querySelector('.stacked td')).display") == "table-cell"
    pdf = page.call("Page.printToPDF", preferCSSPageSize=True)["data"]
    assert len(pdf) > 100_000
    assert page.complaints() == []


def test_a_page_that_fetches_or_fails_is_found_out(tmp_path: Path, chromium: browser.Browser) -> None:
    """So that the other tests can be believed."""
    path = tmp_path / "page.html"
    path.write_text(
        "<meta name=viewport content='width=device-width'><img src='http://127.0.0.1:9/x.png'>"
        "<div style='width: 600px'>wide</div><script>console.error('wrong'); nothing()</script>"
    )
    page = chromium.page(390, mobile=True)
    page.open(path.as_uri())
    page.until(f"{WIDTH}[0] > 390")
    assert "http://127.0.0.1:9/x.png" in page.requests()
    assert any("wrong" in text for text in page.complaints())
    assert any("nothing is not defined" in text for text in page.complaints())
    assert page.evaluate(f"({OVERFLOW}).some(text => text.includes('wide'))")


def test_a_chain_of_blocks_is_a_network_and_no_cell(reports: dict[str, Path]) -> None:
    page = Page(reports["chains"])
    assert "Network 1: " in page.text and "Cell 1" not in page.text and "cell's" not in page.text
    assert {"#network-1"} <= {str(a["href"]) for a in page.of("a")} <= {f"#network-{n}" for n in range(1, 9)}
    drawn = (reports["chains"].parent / "cells.svg").read_text()
    assert "<!-- network 1, " in drawn and "<!-- cell" not in drawn
    assert "Cell 1: " in Page(reports["cells"]).text
