"""MLflow's own pages in a real browser: what `make ui` shows of two methods, side by side."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from sumnas import plots
from sumnas.tracking import Tracker, views
from sumnas.tracking.send import ITSELF, NOTE
from sumnas.tracking.store import Store
from sumnas.tracking.sync import sync
from tests import browser

ROOT = Path(__file__).resolve().parents[1]
TAUS = {"fairnas": 0.53125, "sumnas-k2": 0.59375}
TEXT = "document.body.innerText"
FILTER = quote("tags.stage = 'rank'")
PATIENCE = 90.0
START = 240.0
"""Seconds that MLflow may take to answer for the first time."""
PLACE = """(element => { if (!element) return null; const box = element.getBoundingClientRect();
    return box.width ? [box.x + box.width / 2, box.y + box.height / 2] : null; })"""
UNFOLD = """document.querySelector("[row-index='0'] [col-id='attributes.`Run Name`'] :is(button, [role=img])")"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, fresh_store: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of MLflow's pages, started as `make ui` does, and the runs' keys by method."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(fresh_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for method, tau in TAUS.items():
            track(method, tau)
        store = Store(Path())
        sync(store, [Path("results")])
        found = store.client.search_runs([store.experiment], "tags.stage = 'rank'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sumnas.tracking", "ui", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, process_group=0)
    try:
        answers(f"http://127.0.0.1:{port}/health", folder / "log")
        yield f"http://127.0.0.1:{port}", {run.data.params["method"]: run.info.run_id for run in found}
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def track(method: str, tau: float) -> None:
    """Write the log of a ranking as the stage does: settings, figures, a picture, and a note with it."""
    folder = Path(f"results/ranking/{method}-0")
    rows = [{"reference": 90 + i, "predicted": 80 + i * i, "macs": 0.1 * i} for i in range(5)]
    plots.scatter(folder / "scatter.svg", rows, method, "predicted")
    settings = {"method": method, "evaluation.split": "validation"}
    tracker = Tracker(folder / "log.jsonl", f"rank {method}-0", ("g", "params g"), settings, {"stage": "rank"})
    tracker.tags({NOTE: f"Kendall tau {tau}\n\n![scatter](get-artifact?path=scatter.svg&run_uuid={ITSELF})"})
    tracker.metrics({"kendall_tau": tau, "spearman_rho": tau / 2})
    tracker.artifact(folder / "scatter.svg")
    tracker.end("FINISHED")


def answers(url: str, log: Path) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + START
    while True:
        with contextlib.suppress(URLError, ConnectionError), urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.running(tmp_path_factory.mktemp("profile")) as running:
        yield running


def press(page: browser.Page, element: str, effect: str, first: Callable[[], None] = lambda: None) -> None:
    """Click on the middle of an element, once it is there, until that has its effect; `first` goes before every click.

    Rows move while the page fills them, so a click may land beside its element: it is repeated, as a person would. The
    effect is looked at before every click, so that none undoes the one before.
    """
    end = time.monotonic() + PATIENCE
    while not page.evaluate(effect):
        assert time.monotonic() < end, f"{element} was pressed, but {effect} does not hold"
        first()
        if place := page.evaluate(f"{PLACE}({element})"):
            page.click(*place)
        with contextlib.suppress(AssertionError):
            page.until(effect, 3.0)


def test_two_methods_are_selected_and_compared(chromium: browser.Browser, runs: tuple[str, dict[str, str]]) -> None:
    address, keys = runs
    page = chromium.page(1400, 1000)
    page.open(f"{address}/#/experiments/1/runs?searchFilter={FILTER}")
    boxes = {
        method: f"[...document.querySelectorAll('[role=row]')].find(r => r.innerText.includes('rank {method}-0'))"
        "?.querySelector('.ag-checkbox-input')"
        for method in TAUS
    }
    press(page, UNFOLD, " && ".join(f"!!{box}" for box in boxes.values()))

    def select() -> None:
        for box in boxes.values():
            press(page, box, f"!!{box}?.checked")

    compare = "[...document.querySelectorAll('button')].find(b => b.innerText.trim() == 'Compare')"
    press(page, compare, "location.hash.startsWith('#/compare-runs')", select)
    assert all(key in page.evaluate("location.hash") for key in keys.values())
    page.until(f"{TEXT}.includes('Show diff only')", PATIENCE)
    text = page.until(f"{TEXT}.includes('spearman_rho') && {TEXT}", PATIENCE)
    names, figures = text.split("\nMetrics\n")[1].split("\nArtifacts\n")[0].split("spearman_rho")
    assert "kendall_tau" in names and figures.split() == ["0.531", "0.594", "0.266", "0.297"]
    for wanted in ("rank fairnas-0", "rank sumnas-k2-0", "evaluation.split"):
        assert wanted in text
    assert [url for url in page.requests() if not url.startswith(address)] == []


def test_a_note_shows_the_picture(chromium: browser.Browser, runs: tuple[str, dict[str, str]]) -> None:
    address, keys = runs
    page = chromium.page(1400, 1200)
    page.open(f"{address}/#/experiments/1/runs/{keys['fairnas']}")
    page.until(f"{TEXT}.includes('Kendall tau 0.53125')", PATIENCE)
    picture = "[...document.images].find(i => i.src.includes('path=scatter.svg') && i.naturalWidth > 100)?.src"
    assert keys["fairnas"] in page.until(picture, PATIENCE)


def test_the_view_of_rankings_has_the_columns_that_matter(
    chromium: browser.Browser, runs: tuple[str, dict[str, str]]
) -> None:
    address, _ = runs
    page = chromium.page(1900, 1000)
    page.open(views.address(address, "1"))
    rows = "[...document.querySelectorAll('[role=row]')].map(r => r.innerText)"
    page.until(f"{rows}.join().includes('rank fairnas-0') && {TEXT}.includes('0.59375')", PATIENCE)
    text = "\n".join(page.evaluate(rows))
    assert text.index("rank sumnas-k2-0") < text.index("rank fairnas-0"), "the best comes first"
    heads = page.evaluate("[...document.querySelectorAll('[role=columnheader]')].map(h => h.innerText.trim())")
    assert {"kendall_tau", "spearman_rho", "method"} <= set(heads) and "params g" not in text
