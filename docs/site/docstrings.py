"""Docstrings as their authors meant them: plain text, in which only what stands in backticks is markup (mkdocs.yml)."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

SPECIAL = re.compile(r"[<\[\]*_]")


class Plain(griffe.Extension):
    """Escapes what Markdown would take for a tag, a link or emphasis: `<run>`, shapes such as [layers][operators].

    A setting's description becomes its docstring.
    """

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Give a field of a class without a docstring the description in its `Field`, or its name in words."""
        if attr.docstring or not isinstance(node, ast.AnnAssign) or not isinstance(attr.parent, griffe.Class):
            return
        called = node.value.keywords if isinstance(node.value, ast.Call) else []
        described = [keyword.value for keyword in called if keyword.arg == "description"]
        text = spoken(described[0]) if described else attr.name.replace("_", " ")
        attr.docstring = griffe.Docstring(text, parent=attr)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Escape the docstring of one object as it is loaded."""
        if obj.docstring:
            obj.docstring.value = "\n".join(escaped(line) for line in obj.docstring.value.splitlines())


def spoken(text: ast.expr) -> str:
    """Return a string expression's text; what an f-string fills in stays as it is written."""
    if isinstance(text, ast.JoinedStr):
        return "".join(ast.unparse(p.value) if isinstance(p, ast.FormattedValue) else spoken(p) for p in text.values)
    return str(ast.literal_eval(text))


def escaped(line: str) -> str:
    """Return a line with the special characters outside of backticks escaped; indented code stays as it is."""
    if line.startswith("    "):
        return line
    parts = line.split("`")
    parts[::2] = [SPECIAL.sub(r"\\\g<0>", part) for part in parts[::2]]
    return "`".join(parts)
