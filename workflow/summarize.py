"""Bring the listed runs together: one table, one figure, one file of metrics."""

from __future__ import annotations

from sumnas import files, plots, summary
from workflow.stage import Job, execute
from workflow.stages import FOUND, PREDICTIONS, RANKING, RETRAIN, SUMMARY, SUMMARY_FIGURE, SUMMARY_TABLE


def main(job: Job) -> str:
    """Write metrics.json, table.md and kendall_tau.svg under results/summary/."""
    runs = []
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
    metrics = summary.summarize(runs)
    files.write_text(job.path(SUMMARY_TABLE), summary.markdown(metrics))
    rows = summary.taus(metrics)
    count = metrics["architectures"]
    plots.intervals(job.path(SUMMARY_FIGURE), rows, "Kendall tau (95 % interval)", f"{count} architectures")
    files.write_json(job.path(SUMMARY), metrics)
    best = max(metrics["methods"], key=lambda name: metrics["methods"][name]["kendall_tau"] or -2)
    return f"{len(runs)} runs, highest Kendall tau: {best} -> {job.path(SUMMARY_TABLE)}"


if __name__ == "__main__":
    execute("summarize", main)
