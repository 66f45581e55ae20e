"""The one exception for everything a user can mend: its text is what the user reads."""

from __future__ import annotations


class UserError(Exception):
    """Something wrong outside the code: settings, files, data. The message says what, where and what to do."""
