# The pipeline for Snakemake: the same stages, commands, settings and files as dvc.yaml (a test compares them).
# No torch, mlflow or dvc import here: Snakemake parses this file again inside every job.
import glob
import os
import sys

import yaml
from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)
from workflow.sources import of_stage
from workflow.stages import SHARED, STAGES

os.environ["SUMNAS_ENGINE"] = "snakemake"  # for the tags of tracked runs

# The stage takes its shell's place, so that Snakemake waits for the stage itself: a signal to a whole Slurm job ends a
# shell at once, and with it the job, before the stage has saved its checkpoint.
shell.prefix("set -euo pipefail; exec ")

if config:
    raise WorkflowError(
        "--config and --configfile are not read here: params.yaml is the one settings file. "
        "Edit it, or write it from a preset: make preset NAME=quick"
    )


try:
    with open("params.yaml") as file:
        PARAMS = yaml.safe_load(file)
except FileNotFoundError:
    raise WorkflowError("params.yaml: no such file; run from the project's root, or `make preset NAME=quick`")
except yaml.YAMLError as error:
    raise WorkflowError(f"params.yaml: {' '.join(str(error).split())}; run `make check`")
try:
    RUN = PARAMS["run"]
    METHODS, SEEDS, SHARDS, THREADS = (RUN[key] for key in ("methods", "seeds", "shards", "threads"))
    STRATEGIES = {name: block["strategy"] for name, block in PARAMS["methods"].items()}
    SPACE = PARAMS["space"]["name"]
    BENCHMARK, FURTHER = (PARAMS.get(key) or {} for key in ("benchmark", "further"))
    UNKNOWN = [name for name in METHODS if name not in STRATEGIES]
except (AttributeError, KeyError, TypeError) as error:
    raise WorkflowError(f"params.yaml: {error} is missing or misplaced; run `make check`")
WRONG = [f"{name}: must be a block" for name, block in PARAMS.items() if not isinstance(block, dict)]
WRONG += [f"run.{key}: must be a list" for key in ("methods", "seeds", "shards") if not isinstance(RUN[key], list)]
if not isinstance(THREADS, int):
    WRONG.append("run.threads: must be a whole number")
if not os.path.isfile(f"{workflow.basedir}/sumnas/spaces/{SPACE}.py"):
    WRONG.append(f"space.name: no space is called {SPACE}")
if WRONG:
    raise WorkflowError(f"params.yaml: {WRONG[0]}; run `make check`")
if UNKNOWN:
    raise WorkflowError(f"params.yaml: run.methods: {UNKNOWN[0]}: no such block in methods; run `make check`")


def settings(stage):
    """The values of the params blocks that a stage declares: a change of one reruns the stage."""

    def values(wildcards):
        found = {}
        for block in STAGES[stage].blocks:
            value = PARAMS
            for key in block.format(**dict(wildcards.items())).split("."):
                value = value.get(key) if isinstance(value, dict) else None
            found[block] = value
        return found

    return values


def cpus(stage):
    """The threads of a stage, those of all processes that share it; `processes: auto` is one."""
    processes = (PARAMS.get(SHARED[stage]) or {}).get("processes")
    return THREADS * (processes if isinstance(processes, int) else 1)


def code(stage):
    """The source files that make a stage's result."""
    return of_stage(stage, SPACE)


def raw():
    """The files of a source of one's own, where they are: prepare_data says what is missing. Others have checksums.

    Of an image folder its folders, which tell of images that come and go.
    """
    data = PARAMS.get("data") or {}
    path = os.path.expanduser(str(data.get("path") or ""))
    if data.get("source") == "npz":
        return [path] if os.path.isfile(path) else []
    if data.get("source") == "imagefolder":
        return sorted(
            folder
            for split in ("train", "val", "test")
            for folder in glob.glob(f"{path}/{split}/*")
            if os.path.isdir(folder)
        )
    return []


def tables(*sources, costs=None):
    """The files of published accuracies and costs that a stage reads, where they are: it says what is missing."""
    blocks = [source.get(str(source.get("source"))) for source in sources if isinstance(source, dict)]
    paths = [str(block.get("path") or "") for block in (*blocks, costs) if isinstance(block, dict)]
    # Of NATS-Bench's folder its description stands for the 15,625 records; where it is absent its .tar file is read.
    paths = [p if os.path.exists(p) else f"{p.rstrip('/')}.tar" for p in paths if p]
    found = [os.path.join(p, "meta.pickle.pbz2") if os.path.isdir(p) else p for p in paths]
    return sorted({p for p in found if os.path.isfile(p)})


def runs(*files):
    """Files of every run that is listed."""
    return expand(files, method=METHODS, seed=SEEDS)


# dvc.lock alone comes with a clone.
onstart:
    if os.path.exists("dvc.lock") and glob.glob("results/*/*") and not glob.glob(".snakemake/metadata/*"):
        print(
            "The results here are DVC's. Snakemake knows nothing of the settings that made them: to adopt them as they are, "
            "stop this and run `snakemake --touch --cores 1`. One engine per clone is simpler.",
            file=sys.stderr,
        )


wildcard_constraints:
    method="[a-z][a-z0-9_-]*",
    seed=r"\d+",
    shard=r"\d+",


# Every stage's outputs, not only the last ones: after a killed run a finished summary alone would look complete.
rule all:
    input:
        "data/prepared",
        expand("results/benchmark/shards/{shard}.csv", shard=SHARDS),
        "results/benchmark/table.csv",
        "results/benchmark/further.csv",
        "results/samples.csv",
        expand("results/methods/{method}.json", method=METHODS),
        runs("results/supernet/{method}-{seed}/weights.safetensors"),
        runs("results/supernet/{method}-{seed}/history.csv"),
        runs("results/calibrated/{method}-{seed}/statistics.safetensors"),
        runs("results/ranking/{method}-{seed}/predictions.csv"),
        runs("results/ranking/{method}-{seed}/metrics.json"),
        runs("results/ranking/{method}-{seed}/scatter.svg"),
        expand("results/scores/{method}-{seed}/{shard}.csv", method=METHODS, seed=SEEDS, shard=SHARDS),
        runs("results/search/{method}-{seed}/found.json"),
        runs("results/search/{method}-{seed}/history.csv"),
        runs("results/search/{method}-{seed}/scored.csv"),
        runs("results/search/{method}-{seed}/pareto.svg"),
        runs("results/retrain/{method}-{seed}/weights.safetensors"),
        runs("results/retrain/{method}-{seed}/metrics.json"),
        "results/summary/metrics.json",
        "results/summary/overview.json",
        "results/summary/table.md",
        "results/summary/settings.yaml",
        "results/summary/report.html",
        "results/summary/kendall_tau.svg",
        "results/summary/training.svg",
        "results/summary/submodels.svg",
        "results/summary/cells.svg",


rule prepare_data:
    input:
        raw(),
        code=code("prepare_data"),
    output:
        directory("data/prepared"),
    log:
        "logs/prepare_data.log",
    params:
        settings("prepare_data"),
    shell:
        "python -m workflow.prepare_data >> {log} 2>&1"


rule train_references:
    input:
        "data/prepared",
        code=code("train_references"),
    output:
        "results/benchmark/shards/{shard}.csv",
    log:
        "logs/train_references/{shard}.log",
    threads: THREADS
    params:
        settings("train_references"),
    shell:
        "python -m workflow.train_references --shard {wildcards.shard} >> {log} 2>&1"


rule build_benchmark:
    input:
        expand("results/benchmark/shards/{shard}.csv", shard=SHARDS),
        tables(BENCHMARK, costs=BENCHMARK.get("costs")),
        code=code("build_benchmark"),
    output:
        "results/benchmark/table.csv",
    log:
        "logs/build_benchmark.log",
    params:
        settings("build_benchmark"),
    shell:
        "python -m workflow.build_benchmark >> {log} 2>&1"


rule build_further:
    input:
        tables(*FURTHER.values()),
        code=code("build_further"),
    output:
        "results/benchmark/further.csv",
    log:
        "logs/build_further.log",
    params:
        settings("build_further"),
    shell:
        "python -m workflow.build_further >> {log} 2>&1"


rule sample_architectures:
    input:
        "results/benchmark/table.csv",
        code=code("sample_architectures"),
    output:
        "results/samples.csv",
    log:
        "logs/sample_architectures.log",
    params:
        settings("sample_architectures"),
    shell:
        "python -m workflow.sample_architectures >> {log} 2>&1"


rule describe_method:
    input:
        code=code("describe_method"),
        strategy=lambda wildcards: f"sumnas/methods/{STRATEGIES[wildcards.method]}.py",
    output:
        "results/methods/{method}.json",
    log:
        "logs/describe_method/{method}.log",
    params:
        settings("describe_method"),
    shell:
        "python -m workflow.describe_method --method {wildcards.method} >> {log} 2>&1"


rule train_supernet:
    input:
        "data/prepared",
        "results/methods/{method}.json",
        code=code("train_supernet"),
    output:
        "results/supernet/{method}-{seed}/weights.safetensors",
        "results/supernet/{method}-{seed}/history.csv",
    log:
        "logs/train_supernet/{method}-{seed}.log",
    priority: 1  # the longest jobs wait for no reference: begun after those, one of them alone would end the run
    threads: cpus("train_supernet")
    params:
        settings("train_supernet"),
    shell:
        "python -m workflow.train_supernet --run {wildcards.method}-{wildcards.seed} >> {log} 2>&1"


rule recalibrate_bn:
    input:
        "data/prepared",
        "results/supernet/{method}-{seed}/weights.safetensors",
        "results/samples.csv",
        code=code("recalibrate_bn"),
    output:
        "results/calibrated/{method}-{seed}/statistics.safetensors",
    log:
        "logs/recalibrate_bn/{method}-{seed}.log",
    threads: THREADS
    params:
        settings("recalibrate_bn"),
    shell:
        "python -m workflow.recalibrate_bn --run {wildcards.method}-{wildcards.seed} >> {log} 2>&1"


rule rank:
    input:
        "data/prepared",
        "results/supernet/{method}-{seed}/weights.safetensors",
        "results/calibrated/{method}-{seed}/statistics.safetensors",
        "results/samples.csv",
        "results/benchmark/table.csv",
        "results/benchmark/further.csv",
        code=code("rank"),
    output:
        "results/ranking/{method}-{seed}/predictions.csv",
        "results/ranking/{method}-{seed}/metrics.json",
        report(
            "results/ranking/{method}-{seed}/scatter.svg",
            caption="workflow/report/scatter.rst",
            category="Ranking",
            labels={"method": "{method}", "seed": "{seed}"},
        ),
    log:
        "logs/rank/{method}-{seed}.log",
    threads: THREADS
    params:
        settings("rank"),
    shell:
        "python -m workflow.rank --run {wildcards.method}-{wildcards.seed} >> {log} 2>&1"


rule score:
    input:
        "data/prepared",
        "results/supernet/{method}-{seed}/weights.safetensors",
        code=code("score"),
    output:
        "results/scores/{method}-{seed}/{shard}.csv",
    log:
        "logs/score/{method}-{seed}-{shard}.log",
    threads: THREADS
    params:
        settings("score"),
    shell:
        "python -m workflow.score --run {wildcards.method}-{wildcards.seed} --shard {wildcards.shard} >> {log} 2>&1"


rule search:
    input:
        "data/prepared",
        "results/supernet/{method}-{seed}/weights.safetensors",
        "results/benchmark/table.csv",
        expand("results/scores/{{method}}-{{seed}}/{shard}.csv", shard=SHARDS),
        code=code("search"),
    output:
        "results/search/{method}-{seed}/found.json",
        "results/search/{method}-{seed}/history.csv",
        "results/search/{method}-{seed}/scored.csv",
        report(
            "results/search/{method}-{seed}/pareto.svg",
            caption="workflow/report/pareto.rst",
            category="Search",
            labels={"method": "{method}", "seed": "{seed}"},
        ),
    log:
        "logs/search/{method}-{seed}.log",
    threads: THREADS
    params:
        settings("search"),
    shell:
        "python -m workflow.search --run {wildcards.method}-{wildcards.seed} >> {log} 2>&1"


rule retrain:
    input:
        "data/prepared",
        "results/search/{method}-{seed}/found.json",
        code=code("retrain"),
    output:
        "results/retrain/{method}-{seed}/weights.safetensors",
        "results/retrain/{method}-{seed}/metrics.json",
    log:
        "logs/retrain/{method}-{seed}.log",
    threads: cpus("retrain")
    params:
        settings("retrain"),
    shell:
        "python -m workflow.retrain --run {wildcards.method}-{wildcards.seed} >> {log} 2>&1"


rule summarize:
    input:
        runs("results/supernet/{method}-{seed}/weights.safetensors"),
        runs("results/supernet/{method}-{seed}/history.csv"),
        runs("results/ranking/{method}-{seed}/metrics.json"),
        runs("results/ranking/{method}-{seed}/predictions.csv"),
        runs("results/search/{method}-{seed}/found.json"),
        runs("results/search/{method}-{seed}/scored.csv"),
        runs("results/retrain/{method}-{seed}/metrics.json"),
        code=code("summarize"),
    output:
        "results/summary/metrics.json",
        "results/summary/overview.json",
        report("results/summary/table.md", caption="workflow/report/table.rst", category="Summary"),
        "results/summary/settings.yaml",
        "results/summary/report.html",
        report("results/summary/kendall_tau.svg", caption="workflow/report/kendall_tau.rst", category="Summary"),
        report("results/summary/training.svg", caption="workflow/report/training.rst", category="Summary"),
        report("results/summary/submodels.svg", caption="workflow/report/submodels.rst", category="Summary"),
        report("results/summary/cells.svg", caption="workflow/report/cells.rst", category="Summary"),
    log:
        "logs/summarize.log",
    params:
        settings("summarize"),
    shell:
        "python -m workflow.summarize >> {log} 2>&1"
