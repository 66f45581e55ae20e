"""One batch whose images several processes share: every pass and loss is that of the whole batch (sumnas.distributed).

Beside normalisation only dropout looks beyond an image: it draws for all images of the batch from one stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from sumnas.distributed import Ranks
from sumnas.errors import UserError
from sumnas.sync_batchnorm import synchronised

KNOWN = (nn.BatchNorm2d, nn.Dropout)
"""Layers that look beyond an image and can be shared."""
OTHERS = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
"""Every kind of normalisation by batch and of dropout: those that are not KNOWN cannot be shared."""


def check(network: nn.Module, ranks: Ranks, batch_size: int) -> None:
    """UserError where these ranks cannot share the network's batches."""
    if not ranks.several:
        return
    if ranks.world > batch_size:
        raise UserError(f"{ranks.world} processes cannot share a batch of {batch_size} images; start fewer")
    for name, layer in network.named_modules():
        if isinstance(layer, OTHERS) and not isinstance(layer, KNOWN):
            raise UserError(
                f"{name}: several processes cannot share the batch of a layer {type(layer).__name__}; take one process"
            )


@contextlib.contextmanager
def shared_batch(network: nn.Module, ranks: Ranks, whole: int) -> Iterator[None]:
    """Let a pass of the network take this rank's part of a batch of `whole` images; with one rank nothing changes.

    Every rank has to stand at the same place of torch's stream, from which it draws for the whole batch.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout)] if ranks.several else []
    for layer in layers:
        layer.__dict__["forward"] = partial(_drop, layer, ranks.part(whole), whole)
    try:
        with synchronised(network, ranks):
            yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _drop(layer: nn.Dropout, part: slice, whole: int, x: Tensor) -> Tensor:
    if not layer.training:
        return x
    return x * F.dropout(x.new_ones(whole, *x.shape[1:]), layer.p)[part]


def mean_loss(logits: Tensor, labels: Tensor, label_smoothing: float, ranks: Ranks, whole: int) -> Tensor:
    """Return this rank's share of a batch's mean cross-entropy: the sum over the ranks is that of all images.

    [n, classes] logits and [n] labels, of `whole` images over all ranks.
    """
    if not ranks.several:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum") / whole
