"""How long `build_benchmark` takes on NATS-Bench's 15,625 records, and how much memory.

Needs the folder with at least one official record: the others are made from those there, every string in them
replaced by that of the architecture they then stand for, pickled and packed as the official ones are. So the files
have the official size and structure; their accuracies mean nothing. The stage runs as its command line does, once on
the folder and once on the .tar file. On a machine that does other things too, `cpu_seconds` is the figure to look at.
"""

from __future__ import annotations

import argparse
import bz2
import datetime
import json
import os
import pickle
import platform
import resource
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import yaml

from sumnas.benchmark import pickles
from sumnas.machine import cpu_model
from sumnas.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
ENDING = ".pickle.pbz2"


def renamed(value: Any, old: str, new: str) -> Any:
    """Return a copy with one string replaced wherever it is."""
    if isinstance(value, dict):
        return {key: renamed(item, old, new) for key, item in value.items()}
    return new if isinstance(value, str) and value == old else value


def make(source: Path, folder: Path, count: int) -> None:
    """Fill a folder with `count` records."""
    meta_bytes = (source / f"meta{ENDING}").read_bytes()
    strings = pickles.load(bz2.decompress(meta_bytes), "meta")["meta_archs"]
    real = [pickles.load(bz2.decompress(path.read_bytes()), path.name) for path in sorted(source.glob(f"0*{ENDING}"))]
    folder.mkdir(parents=True)
    (folder / f"meta{ENDING}").write_bytes(meta_bytes)
    bar = Progress("make records", count)
    for index, text in enumerate(strings[:count]):
        record = real[index % len(real)]
        data = pickle.dumps(renamed(record, record["200"]["arch_str"], text), protocol=4)
        (folder / f"{index:06d}{ENDING}").write_bytes(bz2.compress(data))
        bar.update(index + 1)


def measure(path: Path, work: Path) -> dict[str, Any]:
    """Run the stage in a folder of its own; return what its run file says."""
    params = yaml.safe_load((ROOT / "presets/quick.yaml").read_text(encoding="utf-8"))
    params["benchmark"] = {"source": "nats", "pool": None, "nats": {"path": str(path), "incomplete": "accept"}}
    work.mkdir()
    (work / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    command = [sys.executable, "-m", "workflow.build_benchmark"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode
    if code:
        raise SystemExit(code)  # the stage has said what is wrong
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = json.loads((work / "results/benchmark/table.run.json").read_text(encoding="utf-8"))
    return {
        "seconds": round(run["seconds"]),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        "peak_memory_mb": run["peak_memory_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder NATS-tss-v1_0-3ffb9-simple with at least one official record")
    parser.add_argument("--count", type=int, default=15625, help="records (default 15625)")
    parser.add_argument("--keep", type=Path, help="folder for the records, which a later call with it then takes up")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "import_nats.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        folder = (arguments.keep or top).resolve() / "NATS-tss-v1_0-3ffb9-simple"
        archive = folder.with_suffix(".tar")
        if not archive.exists():
            make(arguments.source, folder, arguments.count)
            with tarfile.open(archive, "w") as tar:
                tar.add(folder, folder.name)
        sizes = [path.stat().st_size for path in folder.iterdir()]
        rows = [{"from": "folder", **measure(folder, top / "a")}]
        rows.append({"from": "archive", **measure(archive, top / "b")})
    result = {
        "benchmark": "import_nats", "date": datetime.date.today().isoformat(), "cpu": cpu_model(),
        "python": platform.python_version(), "records": len(sizes) - 1, "packed_gb": round(sum(sizes) / 1e9, 2),
        "of": "official records under other names", "runs": rows,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
