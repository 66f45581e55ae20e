"""Write down a method: its settings with every default filled in, and the digest of its strategy's source.

The training of its supernets depends on this file instead of on the folder of strategies, so that adding a strategy
or editing another one retrains nothing.
"""

from __future__ import annotations

from sumnas import files
from workflow import sources
from workflow.stage import Job, execute
from workflow.stages import METHOD


def main(job: Job) -> str:
    """Write results/methods/<method>.json."""
    settings, path = job.params.method, job.path(METHOD)
    source = f"sumnas/methods/{settings.strategy}.py"
    files.write_json(
        path,
        {
            "method": job.names["method"],
            "settings": settings.model_dump(mode="json"),
            "source": source,
            "source_sha256": files.sha256(sources.ROOT / source),
        },
    )
    return f"strategy {settings.strategy} -> {path}"


if __name__ == "__main__":
    execute("describe_method", main)
