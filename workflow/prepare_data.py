"""Prepare the data set once: arrays of every split, or the listing of an image folder, with a manifest."""

from __future__ import annotations

from sumnas import preparation
from workflow.stage import Job, execute


def main(job: Job) -> str:
    """Write data/prepared."""
    manifest = preparation.prepare(job.params.data, job.path(job.stage.outputs[0]))
    counts = ", ".join(f"{count} {name}" for name, count in manifest.counts.items())
    size = f"{manifest.image_size}x{manifest.image_size}"
    return f"{manifest.source}: {counts} images, {size}, {len(manifest.classes)} classes"


if __name__ == "__main__":
    execute("prepare_data", main)
