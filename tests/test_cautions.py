"""Each caution appears exactly when its condition holds."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from sumnas.cautions import cautions, searches

Summary = dict[str, Any]


def faultless() -> Summary:
    """A summary of which there is nothing to say."""
    method = {"kendall_tau": 0.8, "kendall_tau_low": 0.7, "kendall_tau_high": 0.9, "kendall_tau_reason": None}
    return {
        "architectures": 50,
        "split": "validation",
        "seeds": [0, 1],
        "methods": {"first": method, "second": {**method, "kendall_tau": 0.75}},
        "baselines": {name: {"": 0.3, "_low": 0.1, "_high": 0.5} for name in ("macs", "params")},
        "references": {"perfect_tau": 0.9, "reference_seeds": 3},
        "differences": [{"of": "second", "minus": "first", "value": -0.05, "_low": -0.09, "_high": -0.01}],
    }


def test_nothing_to_say() -> None:
    assert cautions(faultless()) == []


def change(*path: Any, to: Any) -> Callable[[Summary], None]:
    def apply(summary: Summary) -> None:
        place: Any = summary
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("apply", "pattern"),
    [
        (change("architectures", to=49), r"^Only 49 architectures .* fewer than 50 "),
        (change("split", to="test"), r"^Predicted on the test split"),
        (change("seeds", to=[7]), r"^One supernet per method"),
        (change("references", "perfect_tau", to=0.8999), r"mean of 3 trainings.*would only reach a tau of 0\.900"),
        (change("references", to={"perfect_tau": None, "reference_seeds": 1}), r"\(each was trained once\)"),
        (change("references", "perfect_tau", to=None), r"\(they differ by no more than their noise\)"),
        (
            change("methods", "second", to={"kendall_tau": None, "kendall_tau_reason": "all predictions are equal"}),
            r"^second has no Kendall tau: all predictions are equal\.$",
        ),
        (
            change("methods", "first", "kendall_tau_low", to=0.3),
            r"^first is not shown to rank better than MACs alone: its interval \[0\.300, 0\.900\] .* 0\.300\.$",
        ),
        (
            change("methods", "first", to={"kendall_tau": 0.1, "kendall_tau_low": 0.0, "kendall_tau_high": 0.29}),
            r"^first ranks worse than MACs alone: .* 0\.300\.$",
        ),
        (change("differences", 0, "_high", to=0.0), r"^No two methods are shown to differ"),
    ],
)
def test_each_condition_alone(apply: Callable[[Summary], None], pattern: str) -> None:
    summary = faultless()
    apply(summary)
    (text,) = cautions(summary)
    assert re.search(pattern, text)


@pytest.mark.parametrize(
    "apply",
    [
        change("methods", "first", "kendall_tau_low", to=0.3001),
        change("baselines", "macs", "", to=None),  # all architectures have the same MACs: nothing to compare with
        change("baselines", "params", "", to=0.89),
        change("differences", to=[]),  # a single method
        change("differences", 0, to={"of": "second", "minus": "first", "value": None, "_low": None, "_high": None}),
    ],
)
def test_no_caution_just_beyond_a_condition(apply: Callable[[Summary], None]) -> None:
    summary = faultless()
    apply(summary)
    assert cautions(summary) == []


def test_one_clear_difference_is_enough() -> None:
    summary = faultless()
    summary["differences"].append({"of": "third", "minus": "first", "value": 0.0, "_low": -0.1, "_high": 0.1})
    assert cautions(summary) == []


def entry(limit: float | None, predicted: float) -> dict[str, Any]:
    return {"limit": limit, "predicted": predicted, "label": "without limit" if limit is None else f"< {limit}M MACs"}


def test_a_search_that_a_stricter_one_beat_ended_too_early() -> None:
    found = {
        "a-0": [entry(0.3, 90.0), entry(None, 90.0)],
        "b-0": [entry(0.3, 91.234), entry(0.2, 92.5), entry(None, 92.0)],
        "c-0": [entry(None, 1.0)],
    }
    limited, whole = searches(found)
    assert limited.startswith(
        "b-0: what the search found < 0.3M MACs is predicted at 91.23 %, less than what it found <"
    )
    assert whole.startswith("b-0: what the search found without limit is predicted at 92.00 %, less than what it found")
    assert all("< 0.2M MACs (92.50 %)" in text for text in (limited, whole))


def test_the_summary_stays_as_it_was() -> None:
    summary = faultless()
    before = copy.deepcopy(summary)
    cautions(summary)
    assert summary == before
