"""The `sumnas` command: what a supernet says of an architecture, what one costs, how it looks, what is missing."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sumnas.errors import UserError

if TYPE_CHECKING:
    from sumnas.spaces.base import Architecture, Space

PARAMS = click.option(
    "--params", "settings", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True,
    help="the settings file",
)  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table")
COMPLETION = """\b
Completion of commands and options (zsh_source, fish_source for other shells):
  eval "$(_SUMNAS_COMPLETE=bash_source sumnas)"
"""
"""The end of the help, as it stands there."""
ARCHITECTURES = click.argument("architectures", nargs=-1, required=True, metavar="ARCH...")


class _Commands(click.Group):
    """Turns a user's mistake into a line and exit code 1, and a file that cannot be used as well."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            for line in str(error).splitlines():
                click.echo(f"sumnas: error: {line}", err=True)
        except OSError as error:
            if error.filename is None and error.errno is None:
                raise
            click.echo(f"sumnas: error: {error.filename or 'a file'}: {error.strerror}", err=True)
        sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=COMPLETION)
@click.version_option(package_name="sumnas")
def main() -> None:
    """Architectures and supernets of this project, from the command line. The pipeline itself: `dvc repro`."""


@main.command(short_help="Predict accuracies with a trained supernet.")
@ARCHITECTURES
@click.option(
    "--weights", type=click.Path(path_type=Path), required=True, help="results/supernet/<run>/weights.safetensors"
)
@click.option("--prepared", type=click.Path(path_type=Path), default=Path("data/prepared"), show_default=True)
@PARAMS
@JSON
def score(architectures: Sequence[str], weights: Path, prepared: Path, settings: Path, as_json: bool) -> None:
    """Predict accuracies (%) with a trained supernet on the CPU: blocks `calibration` and `evaluation` of the settings.

    It computes with run.threads threads, as the stages do: another number gives other rounding.
    """
    from sumnas import data, params, trained
    from sumnas.evaluation import Predictor

    loaded = params.load(settings)
    space, supernet, _ = trained.load(weights)
    images = data.load(prepared)
    data.check_fits(images, space)
    chosen = _decoded(space, architectures)
    with _threads(loaded.run.threads):
        predict = Predictor(space, supernet, images, loaded.calibration, loaded.evaluation)
        scores = [predict(architecture) for architecture in chosen]
    rows = [
        {"architecture": space.encode(a), "predicted": s.accuracy, "loss": s.loss, "split": loaded.evaluation.split}
        for a, s in zip(chosen, scores, strict=True)
    ]
    _show(rows, as_json)


@main.command(short_help="Count multiply-adds and parameters of architectures.")
@ARCHITECTURES
@PARAMS
@JSON
def cost(architectures: Sequence[str], settings: Path, as_json: bool) -> None:
    """Count multiply-adds and parameters (millions) of stand-alone networks in the space of the settings."""
    space = _space(settings)
    rows = [
        {"architecture": space.encode(a), "macs": space.macs(a), "params": space.params(a)}
        for a in _decoded(space, architectures)
    ]
    _show(rows, as_json)


@main.command(short_help="Measure every operator's milliseconds here.")
@click.option(
    "-o", "--output", "--out", "out", type=click.Path(path_type=Path), default=Path("data/latency.csv"),
    show_default=True,
)  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="of the CPU")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="images that run together")
@click.option("--warmup", type=click.IntRange(0), default=5, show_default=True, help="rounds that do not count")
@click.option("--repeats", type=click.IntRange(1), default=30, show_default=True, help="rounds that a median is over")
@PARAMS
@JSON
def latency(
    out: Path, device: str, threads: int, batch_size: int, warmup: int, repeats: int, settings: Path, as_json: bool
) -> None:
    """Measure every operator of the space on this device, as a table for a search under a limit on latency."""
    import torch

    from sumnas import files, latency, machine, stopwatch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here")
    space = _space(settings)
    with _threads(threads):
        costs, whole = stopwatch.measure(space, device, batch_size, warmup, repeats)
    name = torch.cuda.get_device_name() if device == "cuda" else machine.cpu_model()
    facts: dict[str, str | int] = {"device": name, "threads": threads, "batch_size": batch_size, "repeats": repeats}
    latency.write(out, space, costs, {**facts, "torch": torch.__version__})
    low, high = (costs.base + float(end) for end in (costs.table.min(1).sum(), costs.table.max(1).sum()))
    digest = files.sha256(out)
    if as_json:
        said = {"path": str(out), "sha256": digest, **facts, "smallest_ms": low, "largest_ms": high}
        click.echo(json.dumps({**said, "whole_over_parts": [min(whole), max(whole)]}, indent=2))
        return
    click.echo(f"{low:.3g} to {high:.3g} ms on {name} -> {out}")
    click.echo(f"whole networks took {min(whole):.2f} to {max(whole):.2f} times the sums of their parts")
    click.echo(f"search:\n  cost: latency_ms\n  latency: {{ path: {out}, sha256: {digest[:16]} }}")


@main.command()
@click.argument("architecture", metavar="ARCH")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("architecture.svg"), show_default=True)
@PARAMS
@JSON
def draw(architecture: str, output: Path, settings: Path, as_json: bool) -> None:
    """Draw an architecture as an SVG file."""
    from sumnas import drawing, files

    space = _space(settings)
    (chosen,) = _decoded(space, [architecture])
    with files.replacing(output) as part:
        part.write_bytes(drawing.svg(space.graph(chosen), space.candidates, space.chain(chosen)))
    click.echo(json.dumps({"path": str(output), "architecture": space.encode(chosen)}) if as_json else output)


@main.command(short_help="Hand over a retrained network as plain torch files.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("network"), show_default=True)
@click.option("--network", "which", help="which one, where several were retrained: its limit (0.3, none) or string")
@click.option("--prepared", type=click.Path(path_type=Path), default=Path("data/prepared"), show_default=True)
@click.option("--onnx/--no-onnx", default=None, help="network.onnx too  [default: where its packages are installed]")
@JSON
def export(folder: Path, output: Path, which: str | None, prepared: Path, onnx: bool | None, as_json: bool) -> None:
    """Hand over a retrained network of FOLDER (results/retrain/<run>, results/one) as files that need only torch."""
    from sumnas.handover import bundle, retrained

    missing = bundle.missing_for_onnx() if onnx is not False else []
    remedy = f"needs further packages: pip install {' '.join(missing)}"
    if missing and onnx:
        raise UserError(f"--onnx: {remedy}")
    found = retrained.load(folder, which)
    differences = bundle.write(found, prepared, output, onnx=onnx is not False and not missing)
    if missing:
        click.echo(f"sumnas: note: no network.onnx, which {remedy}", err=True)
    if as_json:
        click.echo(json.dumps({"path": str(output), "differences": differences}, indent=2))
        return
    click.echo(f"{', '.join(differences)}: differ by at most {max(differences.values()):.2g} -> {output}")


@main.command("import-benchmark", short_help="Bring published accuracies into one table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("table.csv"), show_default=True)
@PARAMS
@JSON
def import_benchmark(output: Path, settings: Path, as_json: bool) -> None:
    """Bring published accuracies into one table: block `benchmark` of the settings (docs/benchmarks.md)."""
    from sumnas import params
    from sumnas.benchmark import importers, table
    from sumnas.spaces import base

    loaded = params.load(settings)
    space = base.build(loaded.space)
    if loaded.benchmark.source == "pool":
        raise UserError(
            "benchmark.source = 'pool': nothing to import; the pool is trained by `dvc repro build_benchmark`"
        )
    imported = importers.read_telling("import-benchmark", loaded.benchmark, space)
    if loaded.benchmark.costs:
        importers.add_costs(imported, loaded.benchmark.costs, space)
    table.write(output, space, imported.accuracies, imported.costs)
    if as_json:
        counts = {"architectures": len(imported.accuracies), "absent": len(imported.absent)}
        click.echo(json.dumps({"path": str(output), **counts}, indent=2))
        return
    absence = f"; {imported.absence()}" if imported.absent else ""
    click.echo(f"{len(imported.accuracies)} architectures{absence} -> {output}")


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("presets"), show_default=True)
@JSON
def presets(folder: Path, as_json: bool) -> None:
    """List the presets and what each would run."""
    from sumnas import params

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run from the project's root, or name it with --folder")
    rows = []
    for path in sorted(folder.glob("*.yaml")):
        loaded = params.load(path)
        rows.append({
            "preset": path.stem, "data": loaded.data.source, "space": loaded.space.name,
            "benchmark": loaded.benchmark.source, "epochs": loaded.supernet.epochs,
            "runs": len(loaded.run.methods) * len(loaded.run.seeds), "methods": list(loaded.run.methods),
        })  # fmt: skip
    _show(rows if as_json else [{**row, "methods": _listed(row["methods"])} for row in rows], as_json)


@main.command(short_help="Estimate images and hours that the settings cost.")
@click.option("--train", type=click.IntRange(1), help="training images of the set, before any are held out")
@click.option("--test", type=click.IntRange(0), help="its test images")
@click.option("--batch", type=click.IntRange(2), help="images of a batch while measuring  [default: the supernet's]")
@click.option("--seconds", type=click.FloatRange(0), default=20.0, show_default=True, help="of each measurement")
@PARAMS
@JSON
def estimate(
    train: int | None, test: int | None, batch: int | None, seconds: float, settings: Path, as_json: bool
) -> None:
    """Estimate what a run of the settings costs: images by stage, and hours at the speed of this machine."""
    import torch

    from sumnas import estimate, params

    loaded = params.load(settings)
    known = estimate.KNOWN.get(loaded.data.source, (None, None))
    train, test = train or known[0], test if test is not None else known[1]
    if train is None or test is None:
        raise UserError(f"data.source = {loaded.data.source!r}: say how many images it has: --train N --test N")
    device = loaded.run.device
    if device == "auto" or (device == "cuda" and not torch.cuda.is_available()):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    items = estimate.images(loaded, estimate.splits(loaded.data, train, test))
    with _threads(loaded.run.threads):
        measured = estimate.speeds(loaded, device, batch, seconds)
    rows = estimate.hours(items, measured)
    if as_json:
        click.echo(json.dumps({"device": device, "images_per_second": measured, "stages": rows}, indent=2))
        return
    _show([{**row, **{key: f"{row[key]:,.4g}" for key in ("images_million", "hours")}} for row in rows], as_json)
    total = sum(row["hours"] for row in rows)
    click.echo(
        f"{total:.3g} hours of one device in all, an estimate: {measured['train']:.4g} images a second forward and "
        f"backward, {measured['forward']:.4g} forward, measured on {device} with {loaded.run.threads} threads"
    )


@main.command(short_help="Say what settings mean.")
@click.argument("keys", nargs=-1, metavar="[KEY...]")
@click.option("--markdown", is_flag=True, help="all of them, as the page docs/settings.md")
@JSON
def settings(keys: Sequence[str], markdown: bool, as_json: bool) -> None:
    """Say what keys of params.yaml mean, what they may be, and their defaults: search.limits, supernet, nsas, ..."""
    from sumnas import meanings

    if markdown:
        click.echo(meanings.page(), nl=False)
        return
    found = meanings.find(keys)
    if as_json:
        click.echo(json.dumps([meaning._asdict() for meaning in found], indent=2))
        return
    for meaning in found:
        default = f", default {meaning.default}" if meaning.default else ""
        click.echo(click.wrap_text(f"{meaning.key}: {meaning.kind}{default}; {meaning.meaning}", 100, "", "    "))


@main.command(short_help="Say what this machine has and lacks.")
@PARAMS
@JSON
def doctor(settings: Path, as_json: bool) -> None:
    """Say what this machine has and lacks: versions, processors, data, disk, Slurm. Exit code 1 where it cannot run."""
    from sumnas import diagnosis

    found = diagnosis.all_of(settings)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in found], indent=2))
    else:
        for finding in found:
            click.echo(f"{finding.state:8} {finding.what}: {finding.detail}")
    sys.exit(1 if any(finding.state == "missing" for finding in found) else 0)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads, as a stage does: another number gives other rounding, and another speed."""
    import torch

    from sumnas import machine

    machine.keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _space(settings: Path) -> Space:
    from sumnas import params
    from sumnas.spaces import base

    return base.build(params.load(settings).space)


def _decoded(space: Space, texts: Sequence[str]) -> list[Architecture]:
    try:
        return [space.decode(text) for text in texts]
    except ValueError as error:
        raise UserError(str(error)) from None


def _listed(names: Sequence[str], most: int = 10) -> str:
    """Return the names in a line; of many, such as those of a grid of settings, the first ones and how many follow."""
    return " ".join(names) if len(names) <= most else f"{' '.join(names[:3])} and {len(names) - 3} more"


def _show(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print rows with the same keys, numbers of a table to four digits."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = [list(rows[0]) if rows else []]
    table += [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
