"""Docstrings as their authors meant them: plain text, in which only what stands in backticks is markup (mkdocs.yml)."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

SPECIAL = re.compile(r"[<\[\]*_]")
FIELDS = "Fields, as declared:"


class Plain(griffe.Extension):
    """Escapes what Markdown would take for a tag, a link or emphasis: `<run>`, shapes such as [layers][operators].

    A setting's description becomes its docstring. Fields that their class's docstring explains are listed below it.
    """

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Give a field of a class without a docstring the description in its `Field`, or else a line in its class's."""
        if attr.docstring or not isinstance(node, ast.AnnAssign) or not isinstance(attr.parent, griffe.Class):
            return
        call = node.value if isinstance(node.value, ast.Call) else None
        described = [keyword.value for keyword in call.keywords if keyword.arg == "description"] if call else []
        if call and described:
            attr.docstring = griffe.Docstring(spoken(described[0]), parent=attr)
            rest = [keyword for keyword in call.keywords if keyword.arg != "description"]
            attr.value = griffe.get_expression(ast.Call(call.func, call.args, rest), parent=attr.parent)
        elif attr.parent.docstring and isinstance(node.target, ast.Name) and not attr.name.startswith("_"):
            attr.parent.docstring.value = with_field(attr.parent.docstring.value, ast.unparse(node))

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Escape the docstring of one object as it is loaded."""
        if obj.docstring:
            obj.docstring.value = "\n".join(escaped(line) for line in obj.docstring.value.splitlines())


def with_field(text: str, declared: str) -> str:
    """Return a class's docstring with one more declaration in the code block of fields at its end."""
    heading = "" if FIELDS in text else f"\n\n{FIELDS}\n"
    return f"{text}{heading}\n    {declared}"


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
