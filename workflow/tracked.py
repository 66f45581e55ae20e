"""What is tracked of a stage: its names, its settings, the figures and files of its result. Makes no result itself."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sumnas import files
from sumnas.errors import UserError
from sumnas.machine import commit, spent
from sumnas.shown import BASELINES, interval, limit_name, number, row
from sumnas.tracking import Tracker
from sumnas.tracking.send import ITSELF, NOTE
from workflow.stages import METHOD, PREPARED, RANKING, RETRAINED, TABLE, WEIGHTS

if TYPE_CHECKING:
    from workflow.stage import Job

LOG = "log.jsonl"
TRAIN = ("train_references", "train_supernet", "retrain")
LONGEST_NOTE = 5000
"""Characters that MLflow keeps of a note at least."""
LARGEST = 2**20
"""Bytes of the largest file that is copied to MLflow."""


@contextlib.contextmanager
def run(job: Job) -> Iterator[None]:
    """Track a stage as one run, give it to the job as `job.tracker`, and note how the stage ends."""
    from sumnas.checkpoint import Interrupted

    tracker = Tracker()
    with tracker.careful():
        tracker = job.tracker = Tracker(job.beside(LOG), name(job), group(job), settings(job), tags(job))
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt | SystemExit)
        if not stopped:
            tracker.tags({"last_error": f"{type(error).__name__}: {error}"})
        tracker.end("KILLED" if stopped else "FAILED")
        raise
    with tracker.careful():
        tracker.metrics(figures(job))
        for dataset in datasets(job):
            tracker.dataset(*dataset)
        for path in map(job.path, job.stage.outputs):
            if path.is_file() and path.suffix != ".safetensors" and path.stat().st_size <= LARGEST:
                tracker.artifact(path)
    with tracker.careful():
        for network in networks(job):
            tracker.model(job.names["method"], *network)
    tracker.end("FINISHED")


def note(job: Job, closing: str) -> None:
    """Track what a person reads first on the run's page: the closing line, main figures, and the stage's pictures."""
    with job.tracker.careful():
        job.tracker.tags({NOTE: "\n\n".join([closing, *_table(job), *_pictures(job)])[:LONGEST_NOTE]})


def datasets(job: Job) -> list[tuple[str, str, Path, str]]:
    """Return the data sets that the stage reads: name, what for, path, digest. Of images it is the manifest's."""
    from sumnas import manifest

    found = []
    if PREPARED in job.stage.inputs:
        name = manifest.read(Path(PREPARED)).source
        context = "training" if job.stage.name in TRAIN else "evaluation"
        found.append((name, context, Path(PREPARED), files.sha256(Path(PREPARED) / manifest.NAME)))
    if TABLE in job.stage.inputs:
        found.append(("benchmark", "true accuracies", Path(TABLE), files.sha256(Path(TABLE))))
    return found


def networks(job: Job) -> list[tuple[str, Path, str, dict[str, Any]]]:
    """Return the trained networks of a retraining: which, file, architecture, and what is known of each."""
    if job.stage.name != "retrain":
        return []
    result, found = files.read_json(job.path(job.stage.outputs[1])), []
    for entry in result["networks"]:
        which = "-".join(limit_name(limit, result["cost"]) for limit in entry["limits"])
        about = {k: entry[k] for k in ("test_accuracy", "validation_accuracy", "macs", "params", "seed")}
        found.append((which, job.path(RETRAINED), entry["architecture"], about | {"run": job.names["run"]}))
    return found


def name(job: Job) -> str:
    """Return the stage with what tells its jobs apart, such as `score sumnas-k2-0 1`."""
    which = [job.names.get("run") or job.names.get("method"), job.names.get("shard")]
    return " ".join([job.stage.name, *filter(None, which)])


def group(job: Job) -> tuple[str, str]:
    """Return key and name of the parent run: $SUMNAS_RUN_GROUP, or one per content of params.yaml."""
    own = os.environ.get("SUMNAS_RUN_GROUP")
    return (own, own) if own else (job.params_digest, f"params {job.params_digest[:8]}")


def settings(job: Job) -> dict[str, str]:
    """Return the declared blocks by dotted name, the same in every run, and what the run was trained with."""
    plain, found = job.params.plain(), dict[str, str]()
    for block in job.stage.blocks:
        head, _, tail = block.partition(".")
        own = head == "methods"
        found |= _flat("method" if own else block, plain["method" if own else tail or head])
    method = trained_with(job)
    if method:  # a strategy without an inner loop adapts by one step
        found |= _flat("strategy", method["strategy"]) | _flat("adaptation_steps", method.get("adaptation_steps", 1))
    return found | {key: job.names[key] for key in ("method", "seed", "shard") if key in job.names}


def trained_with(job: Job) -> Mapping[str, Any]:
    """Return the settings of the run's method: declared, or as the supernet's file or the method's tells."""
    if "method" not in job.names:
        return {}
    declared: Mapping[str, Any] | None = job.params.plain().get("method")
    if declared is not None:
        return declared
    for read, path, key in ((files.read_metadata, WEIGHTS, "method"), (files.read_json, METHOD, "settings")):
        with contextlib.suppress(UserError, KeyError):
            known: Mapping[str, Any] = read(job.path(path))[key]
            return known
    return {}


def tags(job: Job) -> dict[str, str | None]:
    """Return where a run comes from. Method and seed are tags, too: the list of runs can be filtered by either."""
    engine = "dvc" if "DVC_STAGE" in os.environ else os.environ.get("SUMNAS_ENGINE", "hand")
    return {
        "stage": job.stage.name,
        **{key: job.names[key] for key in ("method", "seed", "run", "shard") if key in job.names},
        "settings_digest": job.params.digest(),
        "params_digest": job.params_digest,
        "git_commit": commit(),
        "engine": engine,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "host": platform.node(),
    }


def figures(job: Job) -> dict[str, float]:
    """Return the figures of the result's JSON files under the names that they have there, and the stage's cost.

    What is given per limit or per method has that behind a slash: `test_accuracy/0.3M`, `kendall_tau/spos`.
    """
    found = dict[str, float]()
    for path in map(job.path, job.stage.outputs):
        if path.suffix == ".json" and isinstance(result := files.read_json(path), dict):
            found |= _numbers(result)
            for key, value in result.items():
                if key == "methods" and isinstance(value, dict):
                    for method, entry in value.items():
                        found |= _numbers(entry, f"/{method}")
                for entry in value if isinstance(value, list) else []:
                    for limit in _limits(entry):
                        found |= _numbers(entry, f"/{limit_name(limit, result['cost'])}")
    cost = files.read_json(job.beside("run.json"))
    return found | {"seconds": spent(cost), "peak_memory_mb": cost["peak_memory_mb"]}


def _numbers(entry: Mapping[str, Any], suffix: str = "") -> dict[str, float]:
    return {f"{k}{suffix}": v for k, v in entry.items() if isinstance(v, int | float) and k not in ("seed", "limit")}


def _table(job: Job) -> list[str]:
    """Return the main figures of a ranking as a Markdown table."""
    if job.stage.name != "rank":
        return []
    result = files.read_json(job.path(RANKING))
    rows = [row(["predictor", "Kendall tau", "95 % interval"]), row(["---"] * 3)]
    for name, key in ((job.names["run"], "kendall_tau"), *((BASELINES[b], f"{b}_kendall_tau") for b in BASELINES)):
        rows.append(row([name, number(result[key]), interval(result, key)]))
    return ["\n".join(rows)]


def _pictures(job: Job) -> list[str]:
    """Return the stage's figures as Markdown images: links to the run's files, whose key the sender puts in."""
    paths = [path for path in map(job.path, job.stage.outputs) if path.suffix == ".svg"]
    return [f"![{path.stem}](get-artifact?path={path.name}&run_uuid={ITSELF})" for path in paths]


def _limits(entry: Any) -> list[float | None]:
    if not isinstance(entry, dict):
        return []
    found: list[float | None] = entry.get("limits") or ([entry["limit"]] if "limit" in entry else [])
    return found


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {k: text for key, item in value.items() for k, text in _flat(f"{prefix}.{key}", item).items()}
    return {prefix: value if isinstance(value, str) else json.dumps(value)}
