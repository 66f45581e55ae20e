"""What every setting means: read from the models that check it, for `sumnas settings` and docs/settings.md."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sumnas.benchmark.settings import FurtherSettings
from sumnas.errors import UserError
from sumnas.methods import base as methods
from sumnas.params import BLOCKS, DYNAMIC
from sumnas.spaces import base as spaces

HEAD = """# Settings

Every key that params.yaml may hold. `sumnas settings KEY...` prints the same for a key or a block, `make check` says
whether a file is valid: an unknown key is an error that names the nearest one. A key with a default may be left out;
`null` is none. What is run anew after a change: [pipeline.md](pipeline.md).

This page is made by `sumnas settings --markdown`.
"""
"""How docs/settings.md begins."""
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
"""pydantic's names of the bounds of numbers, and the signs that are shown for them."""


class Meaning(NamedTuple):
    """A key of params.yaml."""

    key: str
    """Dotted; `methods.<name>` and `further.<name>` stand for blocks of any name, a list's items for any of them."""
    kind: str
    """What it may be, bounds included."""
    default: str
    """As YAML; '' where it must be given."""
    meaning: str
    """In words, with units."""


def roots() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Give the blocks in the order of the pipeline: their key, a name, and the model that checks them.

    Those that are chosen by a name in them come once for every space and strategy, with that name; it is '' for others.
    """
    order = ["run", "data", "space", "benchmark", "further", "sampling", "supernet", "methods"]
    for block in [*order, *(name for name in BLOCKS if name not in order)]:
        if block == "space":
            yield from ((block, name, spaces.module_of(name).Settings) for name in spaces.names())
        elif block == "methods":
            yield from (("methods.<name>", name, methods.module_of(name).Settings) for name in methods.names())
        elif block == "further":
            yield "further.<name>", "", FurtherSettings
        else:
            yield block, "", BLOCKS[block]


def of_model(model: type[BaseModel], key: str) -> Iterator[Meaning]:
    """Give what a block's keys mean, in their order, those of blocks inside it after the key that holds them."""
    for name, field in model.model_fields.items():
        inner, full = model_in(field.annotation), f"{key}.{name}"
        yield Meaning(full, kind(field), default(field), described(model, name))
        if inner is not None:
            yield from of_model(inner, full)


def every() -> Iterator[tuple[Meaning, set[str]]]:
    """Give all keys with the names that each is found by.

    A block of `methods` is found by `methods.<strategy>` and by the strategy alone, a `space` by its name likewise.
    """
    for head, name, model in roots():
        for meaning in of_model(model, head):
            rest = meaning.key.removeprefix(head)
            if not name:
                yield meaning, {meaning.key}
            elif head == "space":
                yield meaning._replace(key=f"space ({name}){rest}"), {meaning.key, f"{name}{rest}"}
            else:
                key = f"methods.{name}{rest}"
                yield meaning._replace(key=key), {key, f"{name}{rest}", f"methods.<name>{rest}"}


def find(wanted: Sequence[str]) -> list[Meaning]:
    """Return what is wanted: keys, and all that stand in blocks; nothing named is everything. UserError if unknown."""
    known = list(every())
    if not wanted:
        return [meaning for meaning, _ in known]
    chosen: dict[Meaning, None] = {}
    for text in wanted:
        found = [m for m, names in known if any(f"{name}.".startswith(f"{text}.") for name in names)]
        if not found:
            near = difflib.get_close_matches(
                text, [*BLOCKS, *DYNAMIC, *(name for _, names in known for name in names)], n=1
            )
            hint = f"did you mean '{near[0]}'?" if near else f"blocks: {', '.join([*BLOCKS, *DYNAMIC])}"
            raise UserError(f"{text}: no such setting; {hint}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def described(model: type[BaseModel], name: str) -> str:
    """Return a field's description: its own, or that of the field which it narrows."""
    fields = [m.model_fields[name] for m in model.mro() if issubclass(m, BaseModel) and name in m.model_fields]
    return next((field.description for field in fields if field.description), "")


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a block that a field holds: itself, or null, or several in a list; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_in(part)) is not None), None)


def kind(field: FieldInfo) -> str:
    """Return what a field may be, in words."""
    bounds = " ".join(bound for item in field.metadata if (bound := _bound(item)))
    words, null, _ = _words(field.annotation).partition(" or null")
    return f"{words} {bounds}".rstrip() + null


def _bound(item: object) -> str:
    for name, sign in BOUNDS.items():
        if isinstance(item, getattr(annotated_types, name.capitalize())):
            return f"{sign} {getattr(item, name):g}"
    if isinstance(item, annotated_types.MultipleOf):
        return f"multiple of {item.multiple_of}"
    if isinstance(item, annotated_types.MinLen):
        return "" if item.min_length == 1 else f"(at least {item.min_length})"
    return ""


def _words(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in parts)
    if hasattr(annotation, "__metadata__"):  # Annotated
        extra = [item for given in annotation.__metadata__ for item in getattr(given, "metadata", [given])]
        return " ".join([_words(parts[0]), *(bound for item in extra if (bound := _bound(item)))])
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"list of {len(parts)}: {_words(parts[0])}"
    if origin in (list, tuple):
        return f"list of {_words(parts[0])}"
    if origin is dict:
        return "block of names"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "block"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}[annotation]


def default(field: FieldInfo) -> str:
    """Return a field's default as it would be written; '' where there is none."""
    if field.is_required():
        return ""
    return _written(field.get_default(call_default_factory=True))


def _written(value: object) -> str:
    if isinstance(value, BaseModel):
        given = ", ".join(f"{name}: {_written(getattr(value, name))}" for name in type(value).model_fields)
        return f"{{{given}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_written(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_written(item)}' for name, item in value.items())}}}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):  # never 4e-05, which YAML takes for text
        return f"{value:.6g}" if "e" not in f"{value:.6g}" else f"{value:.12f}".rstrip("0")
    return str(value)


def page() -> str:
    """Return docs/settings.md: a table per block; blocks that stand in several places have one, after all others."""
    parts, places = [HEAD], dict[type[BaseModel], list[str]]()
    for key, name, model in roots():
        parts.append(_table(f"`{key}`: {name}" if name else f"`{key}`", model))
        _places(model, key, places)
    parts += [_table(", ".join(f"`{key}`" for key in dict.fromkeys(keys)), model) for model, keys in places.items()]
    return "\n".join(parts)


def _places(model: type[BaseModel], key: str, places: dict[type[BaseModel], list[str]]) -> None:
    for name, field in model.model_fields.items():
        if (inner := model_in(field.annotation)) is not None:
            places.setdefault(inner, []).append(f"{key}.{name}")
            _places(inner, f"{key}.{name}", places)


def _table(title: str, model: type[BaseModel]) -> str:
    about = " ".join((model.__doc__ or "").split())
    rows = [f"## {title}", "", about, "", "| key | kind | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        given = f"`{text}`" if (text := default(field)) else ""
        cells = (f"`{name}`", kind(field), given, described(model, name))
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "\\<") for cell in cells) + " |")
    return "\n".join([*rows, ""])
