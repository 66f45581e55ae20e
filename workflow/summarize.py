"""Bring the listed runs together: metrics, a table, figures, the settings in force, and a report to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sumnas import files, report, summary
from sumnas.errors import UserError
from sumnas.params import Params
from workflow.stage import Job, execute
from workflow.stages import (
    FOUND,
    OVERVIEW,
    PREDICTIONS,
    RANKING,
    RETRAIN,
    SETTINGS,
    STAGES,
    SUMMARY,
    SUMMARY_TABLE,
    WEIGHTS,
)

RUN_KEYS = ("methods", "seeds", "shards", "threads", "device")
"""The block `run`, which is declared key by key."""


def main(job: Job) -> str:
    """Write metrics.json, overview.json, table.md, settings.yaml, the figures and report.html in results/summary/."""
    runs, methods = [], {}
    for method in job.params.methods:
        for seed in job.params.seeds:
            run = {"run": f"{method}-{seed}"}
            runs.append(
                summary.Run(
                    method,
                    seed,
                    files.read_json(job.path(RANKING, **run)),
                    files.read_json(job.path(FOUND, **run)),
                    files.read_json(job.path(RETRAIN, **run)),
                    files.read_csv(job.path(PREDICTIONS, **run), ("reference", "predicted")),
                )
            )
            weights = files.read_metadata(job.path(WEIGHTS, **run))
            methods[method] = weights["method"]
            check_settings(job, "train_supernet", job.path(WEIGHTS, **run), weights)
            check_settings(job, "rank", job.path(RANKING, **run), runs[-1].ranking)
            check_settings(job, "search", job.path(FOUND, **run), runs[-1].found)
            check_settings(job, "retrain", job.path(RETRAIN, **run), runs[-1].retrain)
    metrics = summary.summarize(runs)
    files.write_text(job.path(SUMMARY_TABLE), summary.markdown(metrics))
    files.write_text(job.path(SETTINGS), yaml.safe_dump(settings(job, methods), sort_keys=False))
    files.write_json(job.path(SUMMARY), metrics)
    files.write_json(job.path(OVERVIEW), summary.overview(metrics))
    written = report.write(job.path(SUMMARY).parent.parent)
    best = max(metrics["methods"], key=lambda name: metrics["methods"][name]["kendall_tau"] or -2)
    return f"{len(runs)} runs, highest Kendall tau: {best} -> {job.path(SUMMARY_TABLE)}, {written}"


def settings(job: Job, methods: dict[str, Any]) -> dict[str, Any]:
    """Return all settings in force, as in params.yaml: the blocks declared here, and the runs' own methods.

    A method's block is taken from what it trained: to declare `methods` would run this stage again for a change of a
    method that no run uses.
    """
    plain = job.params.plain()
    run = {key: plain.pop(key) for key in RUN_KEYS}
    return {"run": run, **plain, "methods": methods}


def check_settings(job: Job, stage: str, path: Path, result: dict[str, Any]) -> None:
    """UserError where a result was made with other settings than those declared: the report would show wrong ones."""
    blocks: dict[str, Any] = {}
    for block in STAGES[stage].blocks:
        head, _, tail = block.partition(".")
        if head == "methods":
            blocks["method"] = result["method"]
        else:
            name = tail or head
            blocks[name] = getattr(job.params, name)
    if Params(blocks).digest() != result["settings_digest"]:
        raise UserError(f"{path}: made with other settings than params.yaml has now; run {stage} again")


if __name__ == "__main__":
    execute("summarize", main)
