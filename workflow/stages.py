"""What each stage reads and writes. A test holds dvc.yaml and the Snakefile against it; imports neither torch nor DVC.

Paths are relative to the project's root. `{method}`, `{seed}`, `{run}` and `{shard}` are a job's own, `{space}` is
`space.name`. A params block may name one key (`run.threads`) or the job's own method (`methods.{method}`).
"""

from __future__ import annotations

from dataclasses import dataclass

COMPUTE = ("run.threads", "run.device")
"""What every stage that computes depends on: both change rounding."""

FIT = ("evaluation.adaptation_steps", "evaluation.adaptation_learning_rate", "evaluation.adaptation_batch_size")
"""How sub-models are fitted before they are scored; the rest of `evaluation` does not change their statistics."""

SHOWN = (
    "data", "space", "benchmark", "further", "sampling", "supernet", "calibration", "evaluation", "ranking", "search",
    "retrain",
)  # fmt: skip
"""The settings that the report shows: all of the stages before it. Not `methods`, some of which may be of no run."""

SHARED = {"train_supernet": "supernet", "retrain": "retrain"}
"""Stages that several processes can share, and the block whose key `processes` says how many."""

RAW = "data/raw"
"""What sources read. DVC depends on the folder, Snakemake on the files of the source in use."""
PREPARED = "data/prepared"
SHARD = "results/benchmark/shards/{shard}.csv"
TABLE = "results/benchmark/table.csv"
FURTHER = "results/benchmark/further.csv"
SAMPLES = "results/samples.csv"
METHOD = "results/methods/{method}.json"
WEIGHTS = "results/supernet/{run}/weights.safetensors"
HISTORY = "results/supernet/{run}/history.csv"
STATISTICS = "results/calibrated/{run}/statistics.safetensors"
PREDICTIONS = "results/ranking/{run}/predictions.csv"
RANKING = "results/ranking/{run}/metrics.json"
SCATTER = "results/ranking/{run}/scatter.svg"
SCORES = "results/scores/{run}/{shard}.csv"
FOUND = "results/search/{run}/found.json"
GENERATIONS = "results/search/{run}/history.csv"
SCORED = "results/search/{run}/scored.csv"
PARETO = "results/search/{run}/pareto.svg"
RETRAINED = "results/retrain/{run}/weights.safetensors"
RETRAIN = "results/retrain/{run}/metrics.json"
SUMMARY = "results/summary/metrics.json"
SUMMARY_TABLE = "results/summary/table.md"
SUMMARY_FIGURE = "results/summary/kendall_tau.svg"
OVERVIEW = "results/summary/overview.json"
SETTINGS = "results/summary/settings.yaml"
TRAINING_FIGURE = "results/summary/training.svg"
SUBMODELS_FIGURE = "results/summary/submodels.svg"
CELLS_FIGURE = "results/summary/cells.svg"
REPORT = "results/summary/report.html"


@dataclass(frozen=True)
class Stage:
    """One stage. `inputs` with `{shard}` in them stand for every shard, unless the stage itself runs per shard."""

    name: str
    per: tuple[str, ...]
    blocks: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def resumes(self) -> bool:
        """Whether it trains or scores, and goes on from where an earlier call was stopped."""
        return "run.threads" in self.blocks


STAGES = {
    stage.name: stage
    for stage in (
        Stage("prepare_data", (), ("data",), (RAW,), (PREPARED,)),
        Stage(
            "train_references",
            ("shard",),
            (*COMPUTE, "run.shards", "space", "benchmark.source", "benchmark.pool"),
            (PREPARED,),
            (SHARD,),
        ),
        Stage("build_benchmark", (), ("run.shards", "space", "benchmark"), (SHARD, RAW), (TABLE,)),
        Stage("build_further", (), ("space", "further"), (RAW,), (FURTHER,)),
        Stage("sample_architectures", (), ("space", "sampling"), (TABLE,), (SAMPLES,)),
        Stage("describe_method", ("method",), ("methods.{method}",), (), (METHOD,)),
        Stage(
            "train_supernet",
            ("method", "seed"),
            (*COMPUTE, "space", "supernet", "methods.{method}"),
            (PREPARED, METHOD),
            (WEIGHTS, HISTORY),
        ),
        Stage(
            "recalibrate_bn",
            ("method", "seed"),
            (*COMPUTE, "space", "calibration", *FIT),
            (PREPARED, WEIGHTS, SAMPLES),
            (STATISTICS,),
        ),
        Stage(
            "rank",
            ("method", "seed"),
            (*COMPUTE, "space", "evaluation", "ranking"),
            (PREPARED, WEIGHTS, STATISTICS, SAMPLES, TABLE, FURTHER),
            (PREDICTIONS, RANKING, SCATTER),
        ),
        Stage(
            "score",
            ("method", "seed", "shard"),
            (
                *COMPUTE,
                "run.shards",
                "space",
                "calibration",
                "evaluation",
                "search.strategy",
                "search.memoise",
                "search.engine",
            ),
            (PREPARED, WEIGHTS),
            (SCORES,),
        ),
        Stage(
            "search",
            ("method", "seed"),
            (*COMPUTE, "run.shards", "space", "search", "calibration", "evaluation"),
            (PREPARED, WEIGHTS, TABLE, SCORES),
            (FOUND, GENERATIONS, SCORED, PARETO),
        ),
        Stage(
            "retrain",
            ("method", "seed"),
            (*COMPUTE, "space", "retrain"),
            (PREPARED, FOUND),
            (RETRAINED, RETRAIN),
        ),
        Stage(
            "summarize",
            (),
            ("run.methods", "run.seeds", "run.shards", *COMPUTE, *SHOWN),
            ("results/supernet", "results/ranking", "results/search", "results/retrain"),
            (
                SUMMARY,
                OVERVIEW,
                SUMMARY_TABLE,
                SETTINGS,
                REPORT,
                SUMMARY_FIGURE,
                TRAINING_FIGURE,
                SUBMODELS_FIGURE,
                CELLS_FIGURE,
            ),
        ),
    )
}
"""In the order of the pipeline."""

NAMED = tuple(dict.fromkeys(b for s in STAGES.values() for b in s.blocks if "." in b and not b.startswith("methods.")))
"""Keys that the engines look up one by one: they must stand in params.yaml, also where their default would do."""
