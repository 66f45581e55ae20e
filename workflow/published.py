"""Reading a published source of true accuracies, with a word about how far it is."""

from __future__ import annotations

from sumnas.benchmark import importers
from sumnas.benchmark.official import Imported
from sumnas.benchmark.settings import BenchmarkSettings, FurtherSettings
from sumnas.progress import Progress, say
from sumnas.spaces.base import Space


def read(stage: str, settings: BenchmarkSettings | FurtherSettings, space: Space) -> Imported:
    """Return what the importers make of the source; UserError names the file, and the line or record in it."""
    if settings.source == "nasbench201" and settings.nasbench201:  # one long call of torch, which tells nothing
        say(f"{stage}: reading {settings.nasbench201.path} whole takes about three minutes per GB")
    bar = Progress(stage, space.size)

    def show(done: int, total: int) -> None:
        bar.total = total  # known only when the source has been looked at
        bar.update(done)

    return importers.read(settings, space, show)
