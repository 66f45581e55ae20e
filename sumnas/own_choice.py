"""A method's own choice of an architecture, looked up beside the choice by ranking (DARTS, GDAS, ENAS, Cream)."""

from __future__ import annotations

from sumnas.benchmark.further import Accuracies
from sumnas.benchmark.table import Table
from sumnas.ranking import Flat
from sumnas.spaces.base import Space


def measures(text: str | None, space: Space, known: Table, further: Accuracies) -> Flat:
    """Return what is known of the architecture `text` that a training itself chose; nothing where it chose none.

    Accuracies are true ones in percent, None where the benchmark does not have the architecture, with the reason; MACs
    and parameters are in millions.
    """
    if text is None:
        return {}
    architecture = space.decode(text)
    accuracy = known.lookup().get(architecture)
    reason = None if accuracy is not None else f"not among the {len(known.architectures)} of the benchmark's table"
    return {
        "derived_architecture": text,
        "derived_accuracy": accuracy,
        "derived_accuracy_reason": reason,
        "derived_macs": space.macs(architecture),
        "derived_params": space.params(architecture),
        **{f"derived_accuracy_on_{name}": column.get(architecture) for name, column in further.items()},
    }
