"""The result files of a small made-up run, and a report as a browser reads it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sumnas import files, params
from sumnas.ranking import RankingSettings, predictors, rank_measures
from sumnas.reliability import perfect_predictor_tau, split_half_tau
from sumnas.spaces.base import Space
from workflow.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
METHODS, SEEDS = ["sumnas-k2", "fairnas"], [0, 1]  # not in the order of the alphabet
COUNT = 12


def write_results(folder: Path, space: Space, block: dict[str, Any] | None = None) -> None:
    """Write params.yaml, and what the stages before `summarize` would have written, from made-up predictions.

    `block` are the space's settings where it is not that of the default ones.
    """
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["run"] |= {"methods": METHODS, "seeds": SEEDS}
    raw["space"] = block or raw["space"]
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    settings = params.load(folder / "params.yaml")
    rng = np.random.default_rng(0)
    architectures = [tuple(rng.integers(1, len(space.candidates), space.layers).tolist()) for _ in range(COUNT)]
    per_seed = rng.normal(90, 3, (COUNT, 1)) + rng.normal(0, 1, (COUNT, 3))
    reference = per_seed.mean(1)
    macs = np.array([space.macs(a) for a in architectures])
    perfect = perfect_predictor_tau(per_seed, rng)
    for method in METHODS:
        for seed in SEEDS:
            run = f"{method}-{seed}"
            digests = {
                stage: settings.select([b.format(method=method) for b in STAGES[stage].blocks]).digest()
                for stage in ("train_supernet", "rank", "search", "retrain")
            }
            predicted = reference + rng.normal(0, 2, COUNT)
            keys = {"run": run, "method": method, "seed": seed}
            files.write_json(folder / f"results/ranking/{run}/metrics.json", {
                **keys, "split": "validation", "settings_digest": digests["rank"],
                **rank_measures(reference, predicted, RankingSettings()),
                **predictors(reference, {"macs": macs, "params": macs}, RankingSettings()),
                "reference_seeds": 3, "reliability_tau": split_half_tau(per_seed, rng).value,
                "perfect_tau": perfect.value, "perfect_tau_low": perfect.low, "perfect_tau_high": perfect.high,
                "submodel_accuracy_mean": float(predicted.mean()), "submodel_accuracy_std": float(predicted.std()),
            })  # fmt: skip
            rows = [
                {"architecture": space.encode(a), "reference": float(r), "predicted": float(p), "macs": float(m)}
                for a, r, p, m in zip(architectures, reference, predicted, macs, strict=True)
            ]
            files.write_csv(folder / f"results/ranking/{run}/predictions.csv", list(rows[0]), rows)
            chosen = [architectures[seed], architectures[5]]  # the second is found by all
            found = [
                {"limit": limit, "architecture": space.encode(a), "predicted": 91.234, "macs": space.macs(a),
                 "params": space.params(a), "benchmark_accuracy": None if limit else 93.21,
                 "cost": space.macs(a), "benchmark_best": 94.5}
                for limit, a in zip([0.3, None], chosen, strict=True)
            ]  # fmt: skip
            files.write_json(folder / f"results/search/{run}/found.json", {
                **keys, "settings_digest": digests["search"], "benchmark_best": 99.0, "cost": "macs", "found": found,
            })  # fmt: skip
            known = dict(zip(architectures, predicted.tolist(), strict=True))
            scored = [
                {"architecture": space.encode(a), "predicted": p, "macs": space.macs(a), "params": space.params(a),
                 "pareto": int(not any(q >= p and space.macs(b) <= space.macs(a) for b, q in known.items() if b != a))}
                for a, p in known.items()
            ]  # fmt: skip
            files.write_csv(folder / f"results/search/{run}/scored.csv", list(scored[0]), scored)
            networks = [{"architecture": space.encode(a), "test_accuracy": 90 + 0.37 * sum(a)} for a in chosen]
            networks[1]["test_top5"] = 98.765  # as of results since top-5 is measured
            files.write_json(folder / f"results/retrain/{run}/metrics.json", {
                **keys, "settings_digest": digests["retrain"], "networks": networks,
            })  # fmt: skip
            history = [
                {"epoch": e, "passes": 1000 * e * (seed + 1), "loss": 2 / e, "probe_loss": "" if e % 2 else 1 / e}
                for e in (1, 2, 3, 4)
            ]
            files.write_csv(folder / f"results/supernet/{run}/history.csv", list(history[0]), history)
            metadata = {
                "method": settings.methods[method].model_dump(mode="json"),
                "settings_digest": digests["train_supernet"],
            }
            files.write_tensors(folder / f"results/supernet/{run}/weights.safetensors", {}, metadata)


class Page(HTMLParser):
    """The report as a browser reads it: elements with their attributes, tables as rows of texts, all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            self.scripts[-1] += data
        elif "style" not in self._inside:
            self.text += data
        if {"td", "th"} & set(self._inside):
            self.tables[-1][-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]
