"""What scoring holds in memory: one batch of one sub-model beside the images, however many are scored (sec. 4.2)."""

from __future__ import annotations

import torch

from sumnas.batchnorm import CalibrationSettings
from sumnas.data import Prepared
from sumnas.evaluation import EvaluationSettings, Predictor, evaluate
from sumnas.exhaustive import orbit
from sumnas.lockstep.scoring import OrbitPredictor
from sumnas.spaces.nasbench201 import NASBench201
from tests.meter import Meter

BATCH = 60


def scorer(space: NASBench201, prepared: Prepared) -> Predictor:
    calibration = CalibrationSettings(images=2 * BATCH, batch_size=BATCH, seed=0)
    return Predictor(
        space, space.supernet(), prepared, calibration, EvaluationSettings(split="validation", batch_size=BATCH)
    )


def test_scoring_holds_a_batch_of_one_sub_model_however_many_are_scored(
    tiny_space: NASBench201, digits: Prepared
) -> None:
    space = tiny_space
    predict = scorer(space, digits)
    heaviest = (3,) * 6  # a 3x3 convolution on every edge
    mixed = [(3, 1, 2, 4, 3, 0), (1, 1, 1, 1, 1, 1), (4, 3, 2, 1, 3, 2), (3, 3, 1, 4, 4, 2), heaviest]
    assert all(space.connected(a) for a in mixed)

    network = space.extract(predict.supernet, heaviest)
    with Meter() as plain:
        evaluate(network, predict.split, BATCH)
    with Meter() as one:
        predict(heaviest)
    with Meter() as many:
        for architecture in mixed * 4:
            predict(architecture)
    # Each sub-model's statistics are let go of, so that nothing grows with their number.
    assert many.peak == one.peak and many.live == one.live
    statistics = sum(b.nbytes for b in network.buffers())
    assert plain.peak < one.peak <= 1.5 * plain.peak + 16 * statistics
    assert one.live <= 2 * statistics


def test_an_orbit_holds_a_batch_of_its_sub_models_however_many_are_scored(
    tiny_space: NASBench201, digits: Prepared
) -> None:
    alone = scorer(tiny_space, digits)
    together = OrbitPredictor(alone)
    with Meter() as heaviest:
        alone((3,) * 6)
    with Meter() as one:
        together(orbit((3, 1, 2, 4, 3, 0), 5))
    with Meter() as many:
        for first in ((0, 0, 0, 0, 0, 0), (4, 3, 2, 1, 3, 2), (3, 3, 1, 4, 4, 2)):
            together(orbit(first, 5))
    assert many.peak == one.peak and many.live == one.live
    assert 5 * heaviest.peak < one.peak <= 8 * heaviest.peak  # 6.5 times, of five sub-models


def test_the_meter_sees_scores_that_are_kept(digits: Prepared) -> None:
    """The comparison above would notice."""
    images = digits.normalise(digits.images["validation"][:BATCH])
    kept = []
    with Meter() as meter:
        for _ in range(3):
            kept.append(torch.relu(images))
    assert meter.live == 3 * images.nbytes
