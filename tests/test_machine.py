"""What a process asks of the machine under it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from sumnas import machine

PROGRAM = """
import resource, sys, torch
from sumnas import machine
if sys.argv[1] == "kept":
    assert machine.keep_freed_memory()
def step():
    held = [torch.ones(2_000_000) for _ in range(5)]  # 8 MB each, all alive at once, as activations are
    return sum(x.sum() for x in held)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
assert step() == 10_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_allocation() -> None:
    faults = {
        how: int(
            subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout
        )
        for how in ("as it is", "kept")
    }
    assert faults["kept"] < 100 and faults["as it is"] > 10 * max(1, faults["kept"])  # a block has 1,953 pages of 4 KB


def test_without_glibc_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (AttributeError, OSError, TypeError):  # macOS and musl; no such library; Windows

        def library(_: None, error: type[Exception] = error) -> None:
            raise error

        monkeypatch.setattr(machine.ctypes, "CDLL", library)
        assert machine.keep_freed_memory() is False
