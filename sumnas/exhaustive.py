"""What an exhaustive search has to score: architectures that one score serves, together."""

from __future__ import annotations

from collections.abc import Hashable

from sumnas.spaces.base import Architecture, Space


def cases(space: Space, *, flatten: bool) -> list[list[Architecture]]:
    """Return all connected architectures, those together that one score serves; in order of their first.

    `flatten` as in `Space.equivalence`.
    """
    groups: dict[Hashable, list[Architecture]] = {}
    for architecture in space.architectures():
        if space.connected(architecture):
            groups.setdefault(space.equivalence(architecture, flatten=flatten), []).append(architecture)
    return list(groups.values())
