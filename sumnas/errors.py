"""The one exception for everything a user can mend: its text is what the user reads."""

from __future__ import annotations


class UserError(Exception):
    """Something wrong outside the code: settings, files, data. The message says what, where and what to do.

    It may quote what a file holds: whatever would move a terminal's cursor or colour it is written as an escape.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(printable(line) for line in message.split("\n")))


def printable(text: str) -> str:
    """Return a text as one line that can be read: line ends and control characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
