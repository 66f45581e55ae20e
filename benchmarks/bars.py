"""What is aimed at, whether a measurement comes to it, and, where not, by how much and why by its own figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def bar(aim: str, at_least: float, found: float, why: str) -> dict[str, Any]:
    """Return one bar; `why` is kept where it is missed."""
    told: dict[str, Any] = {"aim": aim, "at_least": at_least, "found": found, "met": found >= at_least}
    if not told["met"]:
        told |= {"short_by": round(at_least - found, 4), "why": why}
    return told


def of_lockstep(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the bars of a lockstep step, which are set for one H100: each by the row that is furthest from it."""
    told = []
    if small := [row for row in rows if row["batch_size"] == 64]:
        worst = min(small, key=lambda row: row["than_sequential"]["lockstep"]["times_as_fast"])
        found = worst["than_sequential"]["lockstep"]["times_as_fast"]
        bare = worst["than_sequential"]["bare"]["times_as_fast"]
        moved = worst["lockstep_moved_bytes"] / worst["sequential_moved_bytes"]
        told.append(bar(
            f"lockstep over sequential, batch 64 (k={worst['k']})", 5.0, found,
            f"bare passes, one by one and without an update, are {bare:.2f} times as fast as the sequential step: "
            f"that much is its own cost, and what lockstep can save beyond it are launches that keep the device "
            f"waiting. Lockstep asks for {moved:.2f} times as many bytes of memory as the sequential step.",
        ))  # fmt: skip
    if large := [row for row in rows if row["batch_size"] == 256]:
        worst = min(large, key=lambda row: row["share_of_copy_floor"])
        told.append(bar(
            f"lockstep's share of the copy floor, batch 256 (k={worst['k']})", 0.5, worst["share_of_copy_floor"],
            f"it asks for {worst['lockstep_moved_bytes'] / worst['floor_bytes']:.1f} times the floor's bytes, at "
            f"{worst['share_of_copy_moved']:.2f} of the copy bandwidth, while its convolutions and products run at "
            f"{worst['share_of_matrix_product']:.2f} of the matrix product's speed.",
        ))  # fmt: skip
    return told


def of_ranks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the bars of a step in two processes: one for each space, by its row that is furthest from it."""
    told = []
    for name in dict.fromkeys(row["space"]["name"] for row in rows):
        worst = min((row for row in rows if row["space"]["name"] == name), key=lambda row: row["share_of_bound"])
        summed = worst["sum_ms"] / 1e3 / worst["seconds_per_step"]["all"]
        told.append(bar(
            f"share of what the split allows, {name} (k={worst['k']})", 0.9, worst["share_of_bound"],
            f"the sum over the processes takes {summed:.0%} of a step. By the multiply-adds of the paths as they were "
            f"dealt out a step could be {worst['bound_by_macs']:.2f} times as fast, by their number alone "
            f"{worst['bound']:.2f} times. Processes that share nothing and run at once do "
            f"{worst['machine_allows']:.2f} times the work of one on this machine. "
            "The rest is what no multiply-add counts.",
        ))  # fmt: skip
    return told
