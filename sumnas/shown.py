"""How figures are written where people read them: tables, figures, the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BASELINES = {"macs": "MACs alone", "params": "parameters alone"}
"""The trivial predictors, with the names that tables and figures give them."""


def number(value: float | None) -> str:
    """Return a tau or another measure as it is shown: three decimals, `-` for None."""
    return "-" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Return an accuracy in percent as it is shown: two decimals, no sign, `-` for None."""
    return "-" if value is None else f"{value:.2f}"


def interval(values: dict[str, Any], key: str) -> str:
    """Return the interval `<key>_low` to `<key>_high` as it is shown."""
    low, high = values[f"{key}_low"], values[f"{key}_high"]
    return "-" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def with_spread(text: str, std: float | None, digits: int) -> str:
    """Return a mean as it is shown with its standard deviation over seeds, where there are several."""
    return text if std is None else f"{text} ± {std:.{digits}f}"


def measured(cost: str) -> str | None:
    """Return what a limited cost is called where it was measured; None for MACs and parameters, which are counted."""
    return {"macs": None, "params": None, "latency_ms": "latency (ms)"}.get(cost, cost)


def row(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def limit_name(limit: float | None, cost: str) -> str:
    """Return a search's limit as it stands in the names of figures: `0.3M` for MACs and parameters."""
    return "unlimited" if limit is None else f"{limit:g}" + ("M" if cost in ("macs", "params") else "")
