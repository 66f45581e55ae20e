"""Which images of a set that comes in one piece are trained on, and which are held out: equal shares of every class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sumnas import seeding
from sumnas.errors import UserError

Index = NDArray[np.int64]
"""[n] positions of images, ascending."""


def stratified(labels: Index, validation: float, test: float, seed: int) -> dict[str, Index]:
    """Split by shares of the whole, with equal shares of every class; no split where its share is 0.

    UserError where a class has too few images.
    """
    from sklearn.model_selection import train_test_split  # imported here: it takes seconds

    if validation + test >= 1:
        raise UserError(f"data.validation + data.test = {validation + test:g}: must leave images for training")
    state = seeding.derive(seed, "splits") % 2**32
    rest, found = np.arange(len(labels)), {}
    for name, share, of_rest in (("test", test, test), ("validation", validation, validation / (1 - test))):
        if share:
            try:
                rest, held = train_test_split(rest, test_size=of_rest, stratify=labels[rest], random_state=state)
            except ValueError as error:
                raise UserError(
                    f"data.{name} = {share:g}: {len(labels)} images of {labels.max() + 1} classes cannot be split so "
                    f"({error}); hold out another share, or add images"
                ) from None
            found[name] = np.sort(held)
    return {"train": np.sort(rest), **found}


def limited(labels: Index, limit: int, seed: int) -> Index:
    """Return at most `limit` positions, equal shares of every class, drawn at random, in no order.

    A larger limit adds to a smaller one's images. UserError where a class would have no image.
    """
    classes = np.unique(labels)
    if limit < len(classes):
        raise UserError(f"data.limit = {limit}: must be at least {len(classes)}, one image of every class")
    order = seeding.numpy_stream(seed, "limit").permutation(len(labels))
    place = np.empty(len(labels))
    for label in classes:
        members = order[labels[order] == label]
        place[members] = np.arange(len(members)) / len(members)
    return np.argsort(place, kind="stable")[:limit]
