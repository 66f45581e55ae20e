"""A picture of every measurement, from its result file alone: results/<name>.json becomes results/<name>.svg.

    python benchmarks/pictures.py                # of all result files that there are
    python benchmarks/pictures.py lockstep-cpu   # of one

The same bytes for the same numbers, so that a test can hold the committed pictures against the files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sumnas import files
from sumnas.plots import PALETTE, QUIET, drawn

FOLDER = Path(__file__).parent / "results"
Found = Mapping[str, Any]


def bars(axes: Any, groups: Sequence[str], series: Mapping[str, Sequence[float]], ylabel: str, title: str = "") -> None:
    """Draw bars in groups, a colour for each of the series, which are by group."""
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        drawn_bars = axes.bar(places, values, 0.9 * width, color=PALETTE[number % len(PALETTE)], label=name)
        axes.bar_label(drawn_bars, fmt=figures, fontsize=6, rotation=90 if len(series) > 2 else 0, padding=2)
    axes.set_xticks(range(len(groups)), groups, fontsize=8)
    axes.margins(y=0.3)
    axes.set(ylabel=ylabel, title=title)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=7, ncols=len(series), loc="upper left")


def figures(value: float) -> str:
    """Put a number in three figures, or all of it where it has more."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def aim(axes: Any, value: float, label: str) -> None:
    """Draw what is aimed at, and name it in the legend."""
    axes.axhline(value, color=QUIET, linestyle="dashed", linewidth=1, label=label)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, frameon=False, fontsize=7, ncols=len(labels), loc="upper left")


def panels(figure: Any, count: int) -> list[Any]:
    """Return axes below each other."""
    found = [figure.add_subplot(count, 1, number) for number in range(1, count + 1)]
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="#eeeeee")
    return found


def lockstep(found: Found, figure: Any) -> None:
    """Images per second of the four ways, and lockstep's shares of the device's peaks."""
    rows, (speed, shares) = found["rows"], panels(figure, 2)
    groups = [f"batch {row['batch_size']}\nk={row['k']}" for row in rows]
    ways = {way: [row["images_per_s"][way] for row in rows] for way in rows[0]["images_per_s"]}
    bars(speed, groups, ways, "images per second", f"An outer step of SUMNAS, {found['device']}")
    named = {
        "floor of copies": "share_of_copy_floor", "bytes asked for": "share_of_copy_moved",
        "matrix product": "share_of_matrix_product",
    }  # fmt: skip
    bars(shares, groups, {name: [row[key] for row in rows] for name, key in named.items()}, "lockstep's share of peaks")
    aim(shares, 0.5, "aimed at (one H100, batch 256)")


def growth(found: Found, figure: Any) -> None:
    """Time against each thing that was varied, both logarithmic."""
    grows, axes = found["grows_with"], panels(figure, 1)[0]
    for number, (name, row) in enumerate(grows.items()):
        values, took = ([value / of[0] for value in of] for of in (row["values"], row["ms"]))
        label = f"{name}: slope {row['slope']:.2f} (from {row['values'][0]}, {row['ms'][0]:.3g} ms)"
        axes.plot(values, took, marker="o", markersize=3, color=PALETTE[number % len(PALETTE)], label=label)
    axes.plot([1, 16], [1, 16], color=QUIET, linestyle="dashed", linewidth=1, label="proportional")
    axes.set(
        xscale="log", yscale="log", xlabel="times the first value", ylabel="times the first time",
        title=f"How time grows, {found['device']}",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=7)


def scoring(found: Found, figure: Any) -> None:
    """Sub-models per second, and hours for the whole space."""
    names = {"plain": "plain models", "ours": "one by one", "orbits": "in orbits"}
    speed, hours = panels(figure, 2)
    groups = list(names.values())
    title = f"Recalibrating and scoring, {found['device']}"
    bars(speed, groups, {"": [found["per_second"][name] for name in names]}, "sub-models per second", title)
    bars(hours, groups, {"": [found["hours_for_the_space"][name] for name in names]}, "hours for the space")


def overhead(found: Found, figure: Any) -> None:
    """What a job costs beside its own work, and start-up by stage."""
    jobs, starts = panels(figure, 2)
    engines = found["engines"]
    groups = ["start of Python\nand imports", "the engine", "nothing to do\n(whole pipeline)"]
    series = {
        name: [row["per_job"]["start_s"], row["per_job"]["engine_s"], row["nothing_to_do_s"]]
        for name, row in engines.items()
    }
    bars(jobs, groups, series, "seconds, per job", f"What the engines cost, {found['cpu']}")
    stages = next(iter(engines.values()))["stages"]
    bars(
        starts, [name.replace("_", "\n") for name in stages],
        {name: [row["stages"][stage]["start_s"] for stage in stages] for name, row in engines.items()},
        "start, seconds",
    )  # fmt: skip
    starts.tick_params(axis="x", labelsize=5)


def ranks(found: Found, figure: Any) -> None:
    """How many times as fast several processes are, beside what the split and the machine allow."""
    axes, rows = panels(figure, 1)[0], found["rows"]
    series = {
        "measured": "times_as_fast", "the split's bound": "bound", "by multiply-adds": "bound_by_macs",
        f"{found['world']} that share nothing": "machine_allows",
    }  # fmt: skip
    groups = [f"{row['space']['name']}\nk={row['k']}" for row in rows]
    title = f"{found['world']} processes, {found['device']}"
    bars(
        axes, groups, {name: [row[key] for row in rows] for name, key in series.items()}, "times as fast as one", title
    )


def against_nni(found: Found, figure: Any) -> None:
    """Images per second of NNI's trainer, a bare loop around NNI's network, and this project."""
    rows, axes = found["settings"], panels(figure, 1)[0]
    names = {"lightning": "NNI", "bare": "NNI's network, bare loop", "sumnas": "here"}
    series = {
        name: [row["clock"]["images_per_second"][side] for row in rows] for side, name in names.items()
    }  # fmt: skip
    groups = [f"{row['name']}\n{row['clock']['over_lightning']['ratio']:.2f} times NNI" for row in rows]
    bars(axes, groups, series, "images per second", f"SPOS, {found['cpu']}")


def meta_step(found: Found, figure: Any) -> None:
    """An outer step over the bare passes in it."""
    rows, axes = found["settings"], panels(figure, 1)[0]
    groups = [f"{row['name']}\nk={row['k']}" for row in rows]
    bars(axes, groups, {"": [row["ratio"] for row in rows]}, "step over bare passes", f"One thread, {found['cpu']}")
    aim(axes, found["target"], f"aimed at: at most {found['target']}")


def step_profile(found: Found, figure: Any) -> None:
    """Where operators spend their time."""
    rows, axes = found["settings"], panels(figure, 1)[0]
    groups = [f"C={row['channels']} N={row['cells']}\n{row['image_size']}x{row['image_size']}" for row in rows]
    kinds = list(rows[0]["shares"])
    bars(axes, groups, {kind: [row["shares"][kind] for row in rows] for kind in kinds}, "share of operators' time")
    axes.legend(frameon=False, fontsize=6, ncols=3, loc="upper left")


DRAWN: dict[str, tuple[Callable[[Found, Any], None], float, float]] = {
    "lockstep": (lockstep, 7.0, 6.0), "growth": (growth, 6.0, 4.4), "scoring": (scoring, 5.2, 4.6),
    "overhead": (overhead, 7.0, 5.6), "ranks": (ranks, 6.4, 3.4), "against_nni": (against_nni, 5.2, 3.4),
    "meta_step": (meta_step, 5.2, 3.0), "step_profile": (step_profile, 6.0, 3.4),
}  # fmt: skip
"""By `benchmark` of the file: what draws it, and inches."""


def draw(path: Path, target: Path) -> bool:
    """Draw a result file; False where there is no picture of its kind."""
    found = files.read_json(path)
    kind = found.get("benchmark")
    if kind not in DRAWN:
        return False
    function, width, height = DRAWN[kind]
    with drawn(target, width, height) as figure:
        function(found, figure)
    return True


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="files of results/, without .json (default: all)")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args(words)
    for path in [options.folder / f"{name}.json" for name in options.names] or sorted(options.folder.glob("*.json")):
        if draw(path, path.with_suffix(".svg")):
            print(path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
