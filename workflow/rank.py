"""Rank the sampled sub-models by predicted accuracy and compare with the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from sumnas import files, own_choice, seeding
from sumnas.batchnorm import set_statistics
from sumnas.benchmark import further, table
from sumnas.checkpoint import in_blocks
from sumnas.errors import UserError
from sumnas.evaluation import Fit, Score, evaluate
from sumnas.progress import Progress
from sumnas.ranking import Flat, further_measures, predictors, rank_measures
from sumnas.reliability import perfect_predictor_tau, split_half_tau
from sumnas.spaces.base import Architecture, Space
from workflow import inputs
from workflow.stage import Job, execute
from workflow.stages import FURTHER, PREDICTIONS, PREPARED, RANKING, SAMPLES, SCATTER, STATISTICS, TABLE, WEIGHTS

COLUMNS = ("architecture", "reference", "predicted", "loss", "macs", "params")
"""Of predictions.csv: accuracies in percent, loss, MACs and parameters in millions."""
BLOCK = 16
"""Sub-models in a block."""


def main(job: Job) -> str:
    """Write predictions.csv, metrics.json and scatter.svg under results/ranking/<run>/."""
    space, evaluation = job.space(), job.params.evaluation
    supernet, architectures = inputs.supernet(job), inputs.samples(job, space)
    data = job.data(space)
    split = data.split(evaluation.split)
    fit = Fit(data, evaluation)
    statistics, _ = files.read_tensors(job.path(STATISTICS))
    known = table.read(job.path(TABLE), space)
    index = {a: i for i, a in enumerate(known.architectures)}
    missing = [a for a in architectures if a not in index or space.encode(a) not in statistics]
    if missing:
        raise UserError(f"{space.encode(missing[0])}: no reference or no statistics; run sample_architectures again")
    sampled = known.take([index[a] for a in architectures])
    others = further.read(job.path(FURTHER), space)
    derived = files.read_metadata(job.path(WEIGHTS)).get("derived")
    if derived is not None:
        job.tracker.tags({"derived_architecture": derived})
    own = own_choice.measures(derived, space, known, others)

    def scored(block: Sequence[Architecture]) -> list[Score]:
        found = []
        for architecture in block:
            network = space.extract(supernet, architecture)
            fit(network)
            set_statistics(network, statistics[space.encode(architecture)].to(job.device))
            found.append(evaluate(network, split, evaluation.batch_size, space.encode(architecture)))
        return found

    bar = Progress(f"rank {job.names['run']}", len(architectures))
    scores: list[Score] = []
    read = (job.path(PREPARED) / "manifest.json", *(job.path(p) for p in (WEIGHTS, STATISTICS, SAMPLES)))
    with job.work(inputs=read) as work:
        for key, block in in_blocks(architectures, BLOCK):
            scores += [Score(*values) for values in work.remember(key, partial(scored, block))]
            bar.update(len(scores))
        closing = write(job, space, sampled, scores, others, own)
        work.clear()
    return closing


def write(
    job: Job, space: Space, sampled: table.Table, scores: list[Score], others: further.Accuracies, own: Flat
) -> str:
    """Write the results of ranking, and return the closing line."""
    settings = job.params.ranking
    predicted = np.array([score.accuracy for score in scores])
    rows = [
        {
            "architecture": space.encode(a), "reference": float(r), "predicted": s.accuracy, "loss": s.loss,
            "macs": float(m), "params": float(p),
        }
        for a, r, s, m, p in zip(
            sampled.architectures, sampled.accuracy, scores, sampled.macs, sampled.params, strict=True
        )
    ]  # fmt: skip
    costs = {"macs": sampled.macs, "params": sampled.params}
    truths = {name: np.array([column.get(a, np.nan) for a in sampled.architectures]) for name, column in others.items()}
    measures = rank_measures(sampled.accuracy, predicted, settings)
    metrics = {
        "run": job.names["run"],
        "method": job.names["method"],
        "seed": job.seed,
        "split": job.params.evaluation.split,
        "settings_digest": job.params.digest(),
        **measures,
        **predictors(sampled.accuracy, costs, settings),
        **reliability(sampled, settings.seed),
        **further_measures(truths, {"": predicted, **{f"{name}_": of for name, of in costs.items()}}, settings),
        **own,
        "submodel_accuracy_mean": float(predicted.mean()),
        "submodel_accuracy_std": float(predicted.std(ddof=1)),
    }
    files.write_csv(job.path(PREDICTIONS), COLUMNS, rows)
    draw(job, rows, measures["kendall_tau"])
    files.write_json(job.path(RANKING), metrics)
    tau = "undefined" if measures["kendall_tau"] is None else f"{measures['kendall_tau']:.4f}"
    return (
        f"Kendall tau {tau} over {len(rows)} architectures ({job.params.evaluation.split} split) -> {job.path(RANKING)}"
    )


def reliability(sampled: table.Table, seed: int) -> dict[str, float | int | str | None]:
    """Return how far the references agree with themselves, and what a perfect predictor would reach (sec. 5)."""
    matrix = sampled.per_seed
    halves = split_half_tau(matrix, seeding.numpy_stream(seed, "halves"))
    perfect = perfect_predictor_tau(matrix, seeding.numpy_stream(seed, "perfect"))
    return {
        "reference_seeds": int(matrix.shape[1]) or 1,
        "reliability_tau": halves.value,
        "reliability_reason": halves.reason,
        "perfect_tau": perfect.value,
        "perfect_tau_low": perfect.low,
        "perfect_tau_high": perfect.high,
    }


def draw(job: Job, rows: list[dict[str, object]], tau: object) -> None:
    """Draw predicted against reference accuracy."""
    from sumnas import plots

    text = "undefined" if tau is None else f"{tau:.3f}"
    plots.scatter(
        job.path(SCATTER), rows, f"{job.names['run']}: Kendall tau {text}, {len(rows)} architectures",
        f"predicted accuracy, {job.params.evaluation.split} split (%)",
    )  # fmt: skip


if __name__ == "__main__":
    execute("rank", main)
