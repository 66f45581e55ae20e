"""Algorithm 2 at the paper's settings in the paper's MobileNet space, with a made-up score; its Pareto front."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from sumnas import plots
from sumnas.search import Generation, Scores, SearchResult, SearchSettings, evolve_under_limits, pareto_front
from sumnas.spaces import mobilenet
from sumnas.spaces.base import Architecture

OF = mobilenet.build(mobilenet.Settings(name="mobilenet", image_size=224, image_channels=3, classes=1000))
VALUE = np.random.default_rng(0).normal(0, 1, (19, 6)) + OF.mac_costs.table / 5


def value(architecture: Architecture) -> float:
    return float(VALUE[range(19), architecture].sum())


def run(scores: Scores, limits: tuple[float | None, ...], stop_after: int | None = None) -> list[SearchResult]:
    settings = SearchSettings(strategy="evolution", limits=limits)
    assert (settings.population, settings.generations, settings.offspring) == (20, 30, 64)
    assert settings.mutation_probability == 0.1

    def stop(generation: Generation) -> None:
        if generation.generation == stop_after:
            raise KeyboardInterrupt

    costs = OF.mac_costs
    return evolve_under_limits(settings, scores, costs.table, costs.base, OF.connected, stop)


def best_under(limit: float) -> float:
    """The best value there is, by dynamic programming over MACs rounded down to a hundredth of a million."""
    most = int((limit - OF.mac_costs.base) * 100)
    best = np.zeros(most + 1)
    for costs, values in zip(OF.mac_costs.table, VALUE, strict=True):
        steps = (costs * 100).astype(int)  # down: a bound from above
        shifted = [
            np.concatenate((np.full(s, -np.inf), best))[: most + 1] + v for s, v in zip(steps, values, strict=True)
        ]
        best = np.max(shifted, axis=0)
    return float(best.max())


def test_the_papers_search_meets_the_limit_and_scores_each_once() -> None:
    calls: list[Architecture] = []

    def score(architecture: Architecture) -> float:
        calls.append(architecture)
        return value(architecture)

    scores = Scores(score)
    (result,) = run(scores, (400.0,))
    assert len(calls) == len(set(calls)) == scores.computed <= 20 + 30 * 64
    assert max(map(OF.macs, calls)) <= 400 + 5e-7
    assert len(result.history) == 31 and [row.generation for row in result.history] == list(range(31))
    assert result.history[-1].scored == len(calls)
    assert result.found.predicted == max(map(value, calls)) == value(result.found.architecture)
    # Better than as many random ones by far, and near the best that there is.
    random = max(
        value(tuple(a)) for a in np.random.default_rng(1).integers(6, size=(2000, 19)) if OF.macs(tuple(a)) <= 400
    )
    bound = best_under(400.0)
    assert random < result.found.predicted <= bound
    assert bound - result.found.predicted < 0.2 * (bound - random)


def test_three_limits_share_their_scores_and_a_stopped_search_goes_on() -> None:
    limits = (350.0, 400.0, 450.0)
    whole = Scores(value)
    expected = run(whole, limits)
    assert [r.found.cost <= limit for r, limit in zip(expected, limits, strict=True)] == [True] * 3
    first = Scores(value)
    with pytest.raises(KeyboardInterrupt):
        run(first, limits, stop_after=7)
    second = Scores(value, first.known)
    assert run(second, limits) == expected
    assert first.computed + second.computed == whole.computed
    assert list(second.known) == list(whole.known)


def test_the_pareto_front_by_comparing_all_pairs() -> None:
    rng = np.random.default_rng(2)
    for count in (1, 2, 60):
        accuracy, costs = rng.integers(0, 8, count).astype(float), rng.integers(0, 8, count).astype(float)
        expected = [
            i
            for i in range(count)
            if not any(
                accuracy[j] >= accuracy[i]
                and costs[j] <= costs[i]
                and (accuracy[j] > accuracy[i] or costs[j] < costs[i] or j < i)
                for j in range(count)
                if j != i
            )
        ]
        front = pareto_front(accuracy, costs)
        assert sorted(front.tolist()) == expected
        assert (np.diff(costs[front]) > 0).all() and (np.diff(accuracy[front]) > 0).all()


def test_the_picture_has_every_point_the_front_and_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "pareto.svg"
    rows = [
        {"architecture": str(i), "predicted": 50 + i % 3, "macs": 10 + i, "params": 1, "pareto": int(i in (0, 1, 2))}
        for i in range(7)
    ]
    found = [{"label": "12M", "macs": 12.0, "predicted": 52.0}, {"label": "unlimited", "macs": 12, "predicted": 52}]
    plots.pareto(path, rows, found, "sumnas-0: 7 sub-models scored", "validation")
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    marks = [len(list(g.iter("{http://www.w3.org/2000/svg}use"))) for g in root.iter("{http://www.w3.org/2000/svg}g")
             if (g.get("id") or "").startswith("line2d")]  # fmt: skip
    assert 7 in marks
    comments = path.read_text(encoding="utf-8")
    for text in ("Pareto front", "found 12M", "found unlimited", "predicted accuracy, validation split (%)"):
        assert f"<!-- {text} -->" in comments
    before = path.read_bytes()
    plots.pareto(path, rows, found, "sumnas-0: 7 sub-models scored", "validation")
    assert path.read_bytes() == before
