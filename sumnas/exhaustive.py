"""What an exhaustive search has to score: architectures that one score serves, and orbits that one pass serves."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

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


def orbit(architecture: Architecture, candidates: int) -> list[Architecture]:
    """Return the m architectures a + c mod m, c = 0..m-1 (the same c in every layer), by the operator of layer 0.

    Together they use each of the m operators of every layer exactly once, as the paths of a strictly fair round do.
    All architectures of a space of L layers are m^(L-1) such orbits: 3,125 of 5 in NAS-Bench-201.
    """
    first = architecture[0]
    return [tuple((operator - first + c) % candidates for operator in architecture) for c in range(candidates)]


def in_orbits(wanted: Iterable[Architecture], candidates: int) -> list[list[Architecture]]:
    """Return the wanted architectures, those of one orbit together; the order is that of their first, and inside too.

    An orbit has as many as are wanted of it: from one to m.
    """
    together: dict[Architecture, list[Architecture]] = {}
    for architecture in wanted:
        together.setdefault(orbit(architecture, candidates)[0], []).append(architecture)
    return list(together.values())
