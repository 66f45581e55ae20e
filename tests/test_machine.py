"""What a process asks of the machine under it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sumnas import machine

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import ctypes, os, sys
from sumnas import machine
if sys.argv[1] == "kept":
    assert machine.keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def mapped():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
held = [library.malloc(8_000_000) for _ in range(5)]  # all alive at once, as activations are
alive = mapped()
for block in held:
    library.free(block)
print(alive - mapped())
"""
"""The first blocks of the process: glibc's own threshold moves with the first that is freed."""
OURS = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_allocation() -> None:
    # Addresses that go back to the system; faults would depend on the size of the system's pages.
    given_back = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, how], cwd=ROOT, env=OURS, check=True, capture_output=True, text=True,
                timeout=120,
            ).stdout
        )
        for how in ("as it is", "kept")
    }  # fmt: skip
    assert abs(given_back["kept"]) < 4e6 and given_back["as it is"] > 36e6  # of 40


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_what_the_environment_says_of_allocation_is_left(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in set(os.environ) - set(OURS):
        monkeypatch.delenv(other)
    asked: list[None] = []
    monkeypatch.setattr(machine.ctypes, "CDLL", asked.append)
    assert machine.keep_freed_memory() is False and asked == [None]  # a library without `mallopt`
    monkeypatch.setenv(name, "1")
    assert machine.keep_freed_memory() is False and asked == [None]


def test_without_glibc_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in set(os.environ) - set(OURS):
        monkeypatch.delenv(other)
    for error in (AttributeError, OSError, TypeError):  # macOS and musl; no such library; Windows

        def library(_: None, error: type[Exception] = error) -> None:
            raise error

        monkeypatch.setattr(machine.ctypes, "CDLL", library)
        assert machine.keep_freed_memory() is False
