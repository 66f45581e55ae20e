"""A list of runs that MLflow's pages open ready for comparing: which runs, in which order, with which columns."""

from __future__ import annotations

import json

RANKINGS = "rankings"
"""The view's name in an address: every ranking, the best Kendall tau first."""
SHARED = "mlflow.sharedViewState."
"""MLflow's pages keep a view that is shared by its address in a tag of the experiment that begins so."""
COLUMNS = (
    "params.method", "params.adaptation_steps", "params.seed", "metrics.kendall_tau", "metrics.kendall_tau_low",
    "metrics.kendall_tau_high", "metrics.spearman_rho", "metrics.macs_kendall_tau", "metrics.perfect_tau",
    "metrics.submodel_accuracy_mean", "metrics.submodel_accuracy_std",
)  # fmt: skip
"""Parameters and figures that the view shows of every ranking."""


def tags() -> dict[str, str]:
    """Return the tags of the experiment that hold the view."""
    state = {
        "searchFilter": "tags.stage = 'rank'",
        "orderByKey": _quoted("metrics.kendall_tau"),  # in any order but by date a run does not hide below its parent
        "orderByAsc": False,
        "selectedColumns": [_quoted(name) for name in COLUMNS],
    }
    return {f"{SHARED}{RANKINGS}": json.dumps(state)}


def address(server: str, experiment: str) -> str:
    """Return where MLflow's pages on `server` show the view."""
    return f"{server}/#/experiments/{experiment}/runs?viewStateShareKey={RANKINGS}"


def _quoted(name: str) -> str:
    kind, _, key = name.partition(".")
    return f"{kind}.`{key}`"
