"""NAS-Bench-201's strings in both directions, and its public table (method sec. 8)."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sumnas.spaces import nasbench201
from sumnas.spaces.base import module_of, names
from tests.cells import ALL, NAMES, PAPER, space


def test_strings_of_every_architecture() -> None:
    assert PAPER.size == len(ALL) == 15625
    assert list(PAPER.architectures()) == ALL
    for architecture in ALL:
        a, b, c, d, e, f = (NAMES[operator] for operator in architecture)
        text = f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
        assert PAPER.encode(architecture) == text
        assert PAPER.decode(text) == architecture


def test_a_string_may_have_space_around_it() -> None:
    text = PAPER.encode((0, 1, 2, 3, 4, 0))
    assert PAPER.decode(f" {text}\n") == (0, 1, 2, 3, 4, 0)


WELL = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has 1 edges; a NAS-Bench-201 string has 6"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|", "has 5 edges"),
        (f"{WELL}+|none~0|", "has 7 edges"),
        (WELL.replace("none~2", "conv_5x5~2"), "no operator 'conv_5x5'; there are none, skip_connect,"),
        (WELL.replace("none~2", "None~2"), "no operator 'None'"),
        (WELL.replace("none~2", "none~1"), "edge 'none~1' into node 3 should come from node 2"),
        (WELL.replace("none~2", "none"), "edge 'none' into node 3 should come from node 2"),
        (WELL.replace("none~2", "none~2~2"), "edge 'none~2~2' into node 3 should come from node 2"),
        (WELL.replace("|+|", "|"), "is not of the form |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"),
        (WELL.strip("|"), "is not of the form"),
        ("|none~0|none~0|+|none~1|+|none~0|none~1|none~2|", "is not of the form"),
        (WELL.replace("~0|+", "~0 |+"), "edge 'none~0 ' into node 1 should come from node 0"),
    ],
)
def test_a_malformed_string_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError) as error:
        PAPER.decode(text)
    assert why in str(error.value) and repr(text) in str(error.value)


def test_check_names_what_lies_outside() -> None:
    assert PAPER.check([4, 3, 2, 1, 0, 0]) == (4, 3, 2, 1, 0, 0)
    with pytest.raises(ValueError, match="an architecture here has 6 layers, got 5"):
        PAPER.check([0] * 5)
    with pytest.raises(ValueError, match=r"layer 2 has no operator 5 \(0\.\.4\)"):
        PAPER.check([0, 0, 5, 0, 0, 0])
    with pytest.raises(ValueError, match="layer 5 has no operator -1"):
        PAPER.network((0, 0, 0, 0, 0, -1))


def test_the_space_is_found_by_its_name() -> None:
    assert "nasbench201" in names() and not {"base", "layers", "costs"} & set(names())
    assert module_of("nasbench201") is nasbench201
    with pytest.raises(ValueError, match=r"image_size = 30: must be a multiple of 4"):
        space(image_size=30)


# The public table.


def test_the_public_table(shared_data: Path) -> None:
    """Strings, connectivity and costs of all rows of the benchmark."""
    table = shared_data / "nasbench201.csv"
    if not table.exists():
        pytest.skip(f"needs {table}")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["arch"] for row in rows} == {PAPER.encode(architecture) for architecture in ALL}
    disconnected = 0
    for row in rows:
        architecture = PAPER.decode(row["arch"])
        assert PAPER.encode(architecture) == row["arch"]
        connected = PAPER.connected(architecture)
        assert connected == (float(row["cifar10_test_acc"]) != 10.0), row["arch"]
        assert f"{PAPER.macs(architecture):.5f}" == f"{float(row['flops_m']):.5f}", row["arch"]
        assert f"{PAPER.params(architecture):.6f}" == f"{float(row['params_m']):.6f}", row["arch"]
        disconnected += not connected
    assert len(rows) == 15625 and disconnected == 341
