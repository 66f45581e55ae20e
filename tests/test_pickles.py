"""Pickles that nobody vouches for: plain data comes out as Python reads it, anything else is refused and not run."""

from __future__ import annotations

import bz2
import copyreg
import os
import pickle
import pickletools
import struct
import tracemalloc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sumnas.benchmark import pickles
from sumnas.errors import UserError

few = hypothesis_settings(max_examples=60, deadline=None)
integers = st.integers(-(2**31), 2**31 - 1)
scalars = st.one_of(st.none(), st.booleans(), integers, st.floats(allow_nan=False), st.text(), st.binary())
keys = st.one_of(scalars, st.tuples(st.text(), integers))
plain = st.recursive(
    st.one_of(scalars, st.lists(scalars, max_size=4).map(tuple)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.dictionaries(keys, inner, max_size=4).map(lambda d: [d, d]),  # twice the same object: out of the memo
    ),
    max_leaves=30,
)


def undressed(value: Any) -> Any:
    """The same with a dict for every OrderedDict."""
    if isinstance(value, dict):
        return {key: undressed(item) for key, item in value.items()}
    return [undressed(item) for item in value] if isinstance(value, list) else value


@few
@given(plain, st.sampled_from([3, 4, 5]))
def test_plain_data_comes_out_as_python_reads_it(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    found = pickles.load(data, "x")
    assert found == value
    assert repr(found) == repr(value).replace("OrderedDict", "dict") or "OrderedDict" in repr(value)


@few
@given(st.one_of(st.sets(integers), st.lists(st.text(), min_size=300, max_size=600), st.text(min_size=300)))
def test_sets_long_lists_and_long_strings(value: Any) -> None:
    for protocol in (4, 5):
        assert pickles.load(pickle.dumps(value, protocol), "x") == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", pickles.FORMATS)
@pytest.mark.parametrize("order", "<>")
def test_numpy_numbers_come_out_as_python_numbers(name: str, order: str, protocol: int) -> None:
    number = np.array([1 if name == "b1" else 101], dtype=order + name)[0]
    swapped = np.frombuffer(np.array([number], dtype=order + name).tobytes(), dtype=order + name)
    data = pickle.dumps([number, number], protocol)
    if protocol == 2:  # numpy's bytes are then a call of `_codecs.encode`, which NATS-Bench's records have no need of
        with pytest.raises(UserError, match=r"_codecs\.encode"):
            pickles.load(data, "x")
        return
    found = pickles.load(data, "x")
    assert found == [number.item()] * 2 and type(found[0]) is type(number.item())
    dtype = pickles.NumpyDtype(name)
    dtype.__setstate__((3, order))
    assert pickles.numpy_scalar(dtype, swapped.tobytes()) == number.item()


def test_real_records_come_out_as_python_reads_them(shared_data: Path) -> None:
    for name in ("000000", "000011", "meta"):
        data = bz2.decompress((shared_data / f"NATS-tss-v1_0-3ffb9-simple/{name}.pickle.pbz2").read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # numpy.core
            assert pickles.load(data, name) == pickle.loads(data)


@few
@given(plain)
def test_what_is_cut_off_is_named(value: Any) -> None:
    data = pickle.dumps(value, 4)
    for length in range(len(data)):
        with pytest.raises(UserError, match=r"file: (damaged|refused)"):
            pickles.load(data[:length], "file")


@hypothesis_settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.binary(),
        st.lists(st.sampled_from([o.code.encode("latin1") for o in pickletools.opcodes]), max_size=30).map(b"".join),
    )
)
def test_any_bytes_give_a_value_or_a_message(data: bytes) -> None:
    try:
        pickles.load(data, "file")
    except UserError as error:
        assert str(error).startswith("file: ") and "\n" not in str(error)


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def payloads(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that write `marker` when Python reads them, and what is refused in each."""
    command, source = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    call = b"(" + text(command) + b"t"
    known = {os.system: r"'(posix|os)\.system'", eval: r"'(builtins|__builtin__)\.eval'"}
    known[exec] = r"'(builtins|__builtin__)\.exec'"
    made = {
        f"{function.__name__} in protocol {protocol}": (
            pickle.dumps(Call(function, command if function is os.system else source), protocol), name
        )
        for protocol in range(1, 6)
        for function, name in known.items()
    }  # fmt: skip
    return made | {
        "GLOBAL os.system": (b"cos\nsystem\n" + call + b"R.", r"'os\.system'"),
        "within a list": (b"\x80\x04]" + text("os") + text("system") + b"\x93" + call + b"Ra.", r"'os\.system'"),
        "STACK_GLOBAL": (b"\x80\x04" + text("posix") + text("system") + b"\x93" + call + b"R.", r"'posix\.system'"),
        "INST": (b"(" + text(command) + b"ios\nsystem\n.", r"'os\.system'"),
        "OBJ": (b"(cos\nsystem\n" + text(command) + b"o.", r"'os\.system'"),
        "a name in a class": (
            b"\x80\x04" + text("builtins") + text("__import__") + b"\x93" + b"(" + text("os") + b"tR0"
            + text("os") + text("system.__call__") + b"\x93" + call + b"R.",
            r"'builtins\.__import__'",
        ),
        "EXT1": (b"\x80\x02\x82\xf0" + call + b"R.", "the operation EXT1"),
        "EXT2": (b"\x80\x02\x83\xf0\x00" + call + b"R.", "the operation EXT2"),
        "EXT4": (b"\x80\x02\x84\xf0\x00\x00\x00" + call + b"R.", "the operation EXT4"),
    }  # fmt: skip


CASES = [*payloads(Path("x"))]


@pytest.fixture
def extension() -> Iterator[None]:
    """A code of the extension registry that stands for os.system, already looked up once."""
    copyreg.add_extension("os", "system", 0xF0)
    pickle.loads(b"\x80\x02\x82\xf0.")
    yield
    copyreg.remove_extension("os", "system", 0xF0)
    copyreg.clear_extension_cache()


@pytest.mark.parametrize("case", CASES)
def test_code_is_refused_and_does_not_run(case: str, tmp_path: Path, extension: None) -> None:
    marker = tmp_path / "marker"
    data, name = payloads(marker)[case]
    pickle.loads(data)
    assert marker.exists(), "the payload itself does nothing: this test could not fail"
    marker.unlink()
    with pytest.raises(UserError, match=rf"^file: refused: (the class or function )?{name}; no official file has that"):
        pickles.load(data, "file")
    assert not marker.exists()


class Slots:
    """Something that BUILD could set attributes of."""


DTYPE = b"cnumpy\ndtype\n"
STRANGE: dict[str, tuple[bytes, str]] = {
    "attributes of a dict": (b"\x80\x04}}" + text("x") + b"Nsb.", "attributes for dict"),
    "attributes of a name": (
        b"ccollections\nOrderedDict\nN}" + text("__code__") + b"Ns\x86b.", "attributes for function"
    ),
    "a call of a list": (b"\x80\x04])R.", "a call of list"),
    "a class of ours": (pickle.dumps(Slots(), 4), "'copyreg|Slots'"),
    "NEWOBJ": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "the operation NEWOBJ"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "the operation NEWOBJ_EX"),
    "INST of a listed name": (b"(icollections\nOrderedDict\n.", "the operation INST"),
    "a persistent id": (b"\x80\x04" + text("x") + b"Q.", "the operation BINPERSID"),
    "a persistent id as text": (b"Px\n.", "the operation PERSID"),
    "a buffer": (b"\x80\x05\x97.", "the operation NEXT_BUFFER"),
    "a number of any size": (b"\x80\x02\x8b\x04\x00\x00\x00abcd.", "the operation LONG4"),
    "objects of numpy": (DTYPE + b"(" + text("O8") + b"K\x00K\x01tR.", r"numpy\.dtype of 'O8'"),
    "an unknown byte order": (
        DTYPE + b"(" + text("f8") + b"K\x00K\x01tR(K\x03" + text("?") + b"tb.", "unknown byte order"),
    "a scalar of anything": (
        b"cnumpy.core.multiarray\nscalar\n(]C\x01xtR.", "of something that is no plain number"),
    "a name that is no string": (b"\x80\x04]" + text("x") + b"\x93.", "a name that is no string"),
    "an append to a dict": (b"\x80\x04}Na.", "dict where list belongs"),
    "a deep tuple": (b")" + 10**6 * b"\x85" + b".", "a tuple within a tuple"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_what_plain_data_does_not_need_is_refused(case: str) -> None:
    data, message = STRANGE[case]
    with pytest.raises(UserError, match=f"^file: refused: .*{message}"):
        pickles.load(data, "file")


DAMAGED: dict[str, bytes] = {
    "an ordered dict with arguments": b"ccollections\nOrderedDict\n(]tR.",
    "an empty stack": b"\x80\x04.",
    "no mark": b"\x80\x04]u.",
    "no such memo": b"\x80\x04h\x07.",
    "an odd number of items": b"\x80\x04}(Nu.",
    "an unhashable key": b"\x80\x04}]Ns.",
    "bad UTF-8": b"\x80\x04\x8c\x01\xff.",
    "a name without end": b"cos",
    "a number too short": b"cnumpy.core.multiarray\nscalar\n(" + DTYPE + b"(" + text("f8") + b"K\x00K\x01tRC\x01xtR.",
    "a string longer than the file": b"\x80\x04X\xff\xff\xff\xffabc.",
    "bytes longer than the file": b"\x80\x04B\xff\xff\xff\xffabc.",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(case: str) -> None:
    with pytest.raises(UserError, match="^file: damaged .*; get it again from the official source$"):
        pickles.load(DAMAGED[case], "file")


def peak(action: Callable[[], object]) -> int:
    """The most memory that an action takes, in bytes."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_small_files_do_not_fill_the_memory() -> None:
    """An index far into the memo, a text that doubles at every level, and a bomb of bzip2."""

    def refused(function: Callable[[bytes], object], data: bytes) -> Callable[[], object]:
        def attempt() -> None:
            with pytest.raises(UserError):
                function(data)

        return attempt

    doubling = b"\x80\x04]" + b"".join(b"q%c]h%ca(h%ce" % (i, i, i) for i in range(64))
    assert peak(lambda: pickles.load(b"\x80\x04]r\xff\xff\xff\x7f.", "file")) < 1 << 20
    assert peak(refused(lambda d: pickles.load(d, "file"), doubling + text("x") + b"\x93.")) < 1 << 20
    assert peak(refused(lambda d: pickles.load(d, "file"), DTYPE + doubling + b"\x85R.")) < 1 << 20
    bomb = bz2.compress(bytes(64 << 20))
    assert peak(refused(lambda d: pickles.unpack(d, 2_000_000, "file"), bomb)) < 16 << 20
    worst = peak(lambda: pickles.load(b"\x80\x04(" + b"\x8f" * 100_000 + b"t.", "file"))
    assert worst < 400 * 100_000


def test_unpacked_data_is_whole() -> None:
    data = b"abc" * 1000
    assert pickles.unpack(bz2.compress(data), len(data), "file") == data
    with pytest.raises(UserError, match="refused: unpacks to more than 0.002999 MB"):
        pickles.unpack(bz2.compress(data), len(data) - 1, "file")
