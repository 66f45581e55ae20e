"""Plain data out of pickle files that nobody vouches for.

A pickle is a program. `load` runs a small part of that language, the part that builds numbers, strings, lists, flat
tuples, dicts and sets: a name in the file is compared with a list of four and never looked up, nothing is imported,
and no operation can call anything but the readers of numpy numbers below. What Python's own unpickler gives on
such data is the same (a test compares); what it allows besides is refused here, named by class and file.
"""

from __future__ import annotations

import bz2
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from sumnas.errors import UserError

FORMATS = {
    "f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H",
    "u1": "B", "b1": "?",
}  # fmt: skip
"""numpy's names of plain numbers, and how `struct` reads them."""

HINT = "no official file has that; get it again from the official source"
"""What to do about a file that is refused, for messages."""


class Refused(Exception):
    """The file asks for something that plain data does not need."""


class NumpyDtype:
    """Stands for `numpy.dtype` in a file; admits plain numbers only."""

    def __init__(self, name: str, align: object = 0, copy: object = 1) -> None:
        if type(name) is not str or name not in FORMATS:
            raise Refused(f"numpy.dtype of {_short(name)}")
        self.format = "<" + FORMATS[name]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|"):
            raise Refused("numpy.dtype with an unknown byte order")
        self.format = (">" if state[1] == ">" else "<") + self.format[1]


def numpy_scalar(dtype: NumpyDtype, data: bytes) -> float | int | bool:
    """Stands for `numpy.core.multiarray.scalar` in a file; gives Python's own number."""
    if type(dtype) is not NumpyDtype or type(data) is not bytes:
        raise Refused("numpy.core.multiarray.scalar of something that is no plain number")
    value: float | int | bool = struct.unpack(dtype.format, data)[0]
    return value


def ordered_dict() -> dict[Any, Any]:
    """Stands for `collections.OrderedDict` in a file; every dict keeps its order."""
    return {}


NAMES: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": ordered_dict,
    "numpy.dtype": NumpyDtype,
    "numpy.core.multiarray.scalar": numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_scalar,
}
"""All that a file may name."""


def unpack(packed: bytes, limit: int, source: str) -> bytes:
    """Return what bzip2 data holds; UserError where it is damaged, cut off, or more than `limit` bytes."""
    stream = bz2.BZ2Decompressor()
    try:
        data = stream.decompress(packed, max_length=limit + 1)
    except OSError:
        raise UserError(f"{source}: damaged bzip2 data; get it again from the official source") from None
    if len(data) > limit:
        raise UserError(f"{source}: refused: unpacks to more than {limit / 1e6:g} MB; {HINT}")
    if not stream.eof:
        raise UserError(f"{source}: cut off; get it again from the official source")
    return data


def load(data: bytes, source: str) -> Any:
    """Return the plain data of a pickle of protocol 2 to 5; UserError where it is not whole or not plain.

    An OrderedDict comes back as a dict, a numpy number as Python's. Memory stays within a few hundred times the
    size of `data`: every operation makes at most one small object, and an index into the memo takes no room.
    """
    try:
        return _run(data)
    except Refused as refused:
        raise UserError(f"{source}: refused: {refused}; {HINT}") from None
    except Exception as error:  # whatever else bad bytes can bring about: bad UTF-8, an empty stack, an unhashable key
        raise UserError(
            f"{source}: damaged ({type(error).__name__}: {error}); get it again from the official source"
        ) from None


def _run(data: bytes) -> Any:
    """Run the operations until STOP. The order of the branches is that of their frequency in official files."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    number, short, integer, long = struct.Struct(">d"), struct.Struct("<H"), struct.Struct("<i"), struct.Struct("<I")
    push, unpack_number = stack.append, number.unpack_from
    position, size = 0, len(data)

    def marked() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    while True:
        code = data[position]
        position += 1
        while code == 0x47:  # BINFLOAT
            push(unpack_number(data, position)[0])
            code = data[position + 8]
            position += 9
        if code == 0x94:  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif code == 0x4B:  # BININT1
            push(data[position])
            position += 1
        elif code == 0x8C or code == 0x58:  # SHORT_BINUNICODE, BINUNICODE
            length, width = (data[position], 1) if code == 0x8C else (long.unpack_from(data, position)[0], 4)
            position += width + length
            if position > size:
                raise EOFError("cut off within a string")
            text = data[position - length : position].decode("utf-8", "surrogatepass")
            push(text)
            if data[position] == 0x94:  # MEMOIZE follows every string: without another pass through the branches
                memo[len(memo)] = text
                position += 1
        elif code == 0x68:  # BINGET
            push(memo[data[position]])
            position += 1
        elif code == 0x6A:  # LONG_BINGET
            push(memo[long.unpack_from(data, position)[0]])
            position += 4
        elif code == 0x28:  # MARK
            marks.append(len(stack))
        elif code == 0x75 or code == 0x73:  # SETITEMS, SETITEM
            items = marked() if code == 0x75 else [stack.pop(-2), stack.pop()]
            _typed(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif code == 0x7D:  # EMPTY_DICT
            push({})
        elif code == 0x5D:  # EMPTY_LIST
            push([])
        elif code == 0x61 or code == 0x65:  # APPEND, APPENDS
            items = marked() if code == 0x65 else [stack.pop()]
            _typed(stack[-1], list).extend(items)
        elif code in (0x29, 0x74, 0x85, 0x86, 0x87):  # EMPTY_TUPLE, TUPLE, TUPLE1, TUPLE2, TUPLE3
            count = {0x29: 0, 0x85: 1, 0x86: 2, 0x87: 3}.get(code)
            if count is not None:
                marks.append(len(stack) - count)
            push(_flat(tuple(marked())))
        elif code == 0x4E:  # NONE
            push(None)
        elif code == 0x88 or code == 0x89:  # NEWTRUE, NEWFALSE
            push(code == 0x88)
        elif code == 0x4D:  # BININT2
            push(short.unpack_from(data, position)[0])
            position += 2
        elif code == 0x4A:  # BININT
            push(integer.unpack_from(data, position)[0])
            position += 4
        elif code == 0x43 or code == 0x42:  # SHORT_BINBYTES, BINBYTES
            length, width = (data[position], 1) if code == 0x43 else (long.unpack_from(data, position)[0], 4)
            position += width + length
            if position > size:
                raise EOFError("cut off within bytes")
            push(data[position - length : position])
        elif code == 0x8F:  # EMPTY_SET
            push(set())
        elif code == 0x90:  # ADDITEMS
            items = marked()
            _typed(stack[-1], set).update(items)
        elif code == 0x71:  # BINPUT
            memo[data[position]] = stack[-1]
            position += 1
        elif code == 0x72:  # LONG_BINPUT
            memo[long.unpack_from(data, position)[0]] = stack[-1]
            position += 4
        elif code == 0x93:  # STACK_GLOBAL
            name = stack.pop()
            push(_named(stack.pop(), name))
        elif code == 0x63 or code == 0x69:  # GLOBAL, INST
            module, name, _ = data[position : position + 512].split(b"\n", 2)
            position += len(module) + len(name) + 2
            push(_named(module.decode(), name.decode()))
            if code == 0x69:
                raise Refused("the operation INST")
        elif code == 0x52:  # REDUCE
            arguments, function = stack.pop(), stack.pop()
            if not any(function is allowed for allowed in NAMES.values()):
                raise Refused(f"a call of {type(function).__name__}")
            push(function(*_typed(arguments, tuple)))
        elif code == 0x62:  # BUILD
            state = stack.pop()
            if type(stack[-1]) is not NumpyDtype:
                raise Refused(f"attributes for {type(stack[-1]).__name__}")
            stack[-1].__setstate__(state)
        elif code == 0x80:  # PROTO
            position += 1
        elif code == 0x95:  # FRAME: only says how far to read at a time
            position += 8
        elif code == 0x2E:  # STOP
            return stack.pop()
        else:
            names = (operation.name for operation in pickletools.opcodes if ord(operation.code) == code)
            raise Refused(f"the operation {next(names, hex(code))}")


def _named(module: object, name: object) -> Any:
    """Return what stands for a name; anything not listed is refused, and nothing is imported."""
    if type(module) is not str or type(name) is not str:
        raise Refused("a name that is no string")
    full = f"{module}.{name}"
    if full not in NAMES:
        raise Refused(f"the class or function {_short(full)}")
    return NAMES[full]


def _short(value: object) -> str:
    """Return a string's start for a message: the text of anything else could be endless."""
    return ascii(value[:100]) if isinstance(value, str) else type(value).__name__


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Refused(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _flat(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a tuple without tuples in it: the hash of a deep one, as a key, would overflow the interpreter's stack."""
    for item in items:
        if type(item) is tuple and item:
            raise Refused("a tuple within a tuple")
    return items
