"""What a process asks of the machine under it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from sumnas import machine

PROGRAM = """
import os, sys, torch
from sumnas import machine
if sys.argv[1] == "kept":
    assert machine.keep_freed_memory()
def mapped():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
def step():
    held = [torch.ones(2_000_000) for _ in range(5)]  # 8 MB each, all alive at once, as activations are
    return mapped()
print(step() - mapped())  # the first step: glibc's own threshold moves with the first block that is freed
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_allocation() -> None:
    # Addresses that go back to the system when a step ends; faults would depend on the size of the system's pages.
    given_back = {
        how: int(
            subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout
        )
        for how in ("as it is", "kept")
    }
    assert given_back["kept"] == 0 and given_back["as it is"] >= 40_000_000


def test_without_glibc_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (AttributeError, OSError, TypeError):  # macOS and musl; no such library; Windows

        def library(_: None, error: type[Exception] = error) -> None:
            raise error

        monkeypatch.setattr(machine.ctypes, "CDLL", library)
        assert machine.keep_freed_memory() is False
