"""Images streamed from files: against Pillow by hand, whatever the number of workers, and over interruptions."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sumnas import seeding, streaming
from sumnas.augmentation import Augmentation
from sumnas.batchnorm import CalibrationSettings
from sumnas.data import Batches, Prepared, Streamed, check_fits, in_batches, load
from sumnas.distributed import ALONE, Ranks
from sumnas.errors import UserError
from sumnas.evaluation import calibration_batches, evaluate
from sumnas.params import Params
from sumnas.preparation import DataSettings, prepare
from sumnas.spaces import nasbench201
from sumnas.training import Heldout
from workflow.stage import Job
from workflow.stages import STAGES

# A loader that ends by an error closes its queues while torch's own feeding thread may still be writing to one.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception in thread QueueFeederThread:pytest.PytestUnhandledThreadExceptionWarning"
)

SIZE = 8
RANDOM = Augmentation(flip=True, resized_crop=0.3)
SPACE = nasbench201.Settings(
    name="nasbench201", channels=2, cells=1, image_size=SIZE, image_channels=3, classes=3, affine=True
)


def made(root: Path, target: Path, **changes: Any) -> Path:
    values = {"source": "imagefolder", "path": str(root), "resize": SIZE, "validation": 0.25, "seed": 0, **changes}
    prepare(DataSettings.model_validate(values), target)
    return target


@pytest.fixture(scope="module")
def prepared(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(image_folder, tmp_path_factory.mktemp("streaming") / "prepared")


def by_hand(path: Path, crop: float) -> NDArray[np.uint8]:
    """The shorter side scaled to SIZE / crop, and the middle cut out."""
    image = Image.open(path).convert("RGB")
    short, (width, height) = round(SIZE / crop), image.size
    new = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    image = image.resize(new, Image.Resampling.BILINEAR)
    left, top = round((new[0] - SIZE) / 2), round((new[1] - SIZE) / 2)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def every_image(images: Any) -> Tensor:
    found = images[torch.arange(len(images))]
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_images_are_centre_crops(image_folder: Path, tmp_path: Path, crop: float) -> None:
    data = load(made(image_folder, tmp_path, crop=crop))
    for split in ("train", "validation", "test"):
        images = data.images[split]
        assert isinstance(images, streaming.ImageFiles)
        found = every_image(images)
        assert found.dtype == torch.uint8 and tuple(found.shape) == images.shape == (
            len(data.labels[split]),
            SIZE,
            SIZE,
            3,
        )
        for number, path in enumerate(images.paths):
            assert np.array_equal(found[number].numpy(), by_hand(image_folder / os.fsdecode(path), crop)), path
    check_fits(data, nasbench201.build(SPACE))


def epoch(data: Prepared, number: int, start: int = 0, augmentation: Augmentation | None = RANDOM) -> list[Any]:
    """[step][round][stream] batches of an epoch, of 7 images from two streams in two rounds."""
    batches = Batches(data, torch.arange(2, 33), 7, 5, augmentation, streams=2, rounds=2)
    assert batches.steps == 2
    return list(batches.epoch(number, start))


def flat(steps: list[Any]) -> list[Tensor]:
    return [part for rounds in steps for streams in rounds for batch in streams for part in batch]


def same(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(flat(one), flat(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_batches_are_those_of_the_same_images_in_memory(prepared: Path) -> None:
    data = load(prepared)
    images = {"train": every_image(data.images["train"])}
    memory = Prepared(images, data.labels, data.mean, data.std, data.classes)
    assert same(epoch(data, 3, augmentation=None), epoch(memory, 3, augmentation=None))
    (((x, y), _), _), _ = epoch(data, 3)
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32 and y.dtype == torch.int64


def test_neither_workers_nor_the_global_stream_change_a_batch(prepared: Path) -> None:
    expected = epoch(load(prepared), 1)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert same(epoch(load(prepared, workers=2), 1), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(epoch(load(prepared), 2), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_from_its_middle(prepared: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(prepared, workers=workers)
    whole = epoch(data, 1)
    decoded = []
    decode = streaming.ImageFiles.decode
    monkeypatch.setattr(streaming.ImageFiles, "decode", lambda self, n: (decoded.append(n), decode(self, n))[1])
    rest = epoch(data, 1, start=1)
    assert same(rest, whole[1:])
    assert workers or len(decoded) == 28  # nothing that was seen before is decoded again


@pytest.mark.parametrize("world", [2, 3, 5])  # of five two have none of the last three images
def test_processes_that_share_a_batch_decode_an_image_once_with_the_same_draws(
    prepared: Path, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(ranks: Ranks) -> list[Any]:
        how = RANDOM.model_copy(update={"random_erasing": 0.6})
        shared = Batches(load(prepared), torch.arange(2, 33), 7, 5, how, keep_last=True, part=ranks.part)
        return [batch for ((batch,),) in shared.epoch(1, 1)]

    whole, decoded = batches(ALONE), []
    decode = streaming.ImageFiles.decode
    monkeypatch.setattr(streaming.ImageFiles, "decode", lambda self, n: (decoded.append(n), decode(self, n))[1])
    parts = [batches(Ranks(rank, world)) for rank in range(world)]
    for (images, labels), *shared in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([x for x, _ in shared]), images)
        assert torch.equal(torch.cat([y for _, y in shared]), labels)
    assert len(decoded) == len(set(decoded)) == 31 - 7


@pytest.mark.parametrize("augmentation", [None, Augmentation(flip=True, crop_padding=1)], ids=str)
def test_an_epoch_in_memory_goes_on_from_its_middle(prepared: Path, augmentation: Augmentation | None) -> None:
    data = load(prepared)
    memory = Prepared({"train": every_image(data.images["train"])}, data.labels, data.mean, data.std, data.classes)
    whole = epoch(memory, 1, augmentation=augmentation)
    assert same(epoch(memory, 1, start=1, augmentation=augmentation), whole[1:])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_come_in_pinned_memory(prepared: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Loader:
        def __init__(self, *_: object, pin_memory: bool, **__: object) -> None:
            asked.append(pin_memory)
            raise StopAsyncIteration  # no GPU is needed to know

    monkeypatch.setattr(streaming, "DataLoader", Loader)
    data = load(prepared)
    data.labels["train"] = SimpleNamespace(device=torch.device(device))  # type: ignore[assignment]
    with pytest.raises(StopAsyncIteration):
        next(Batches(data, torch.arange(8), 4, 0).epoch(0))
    assert asked == [device == "cuda"]


def test_held_out_batches_are_streamed_too(prepared: Path) -> None:
    def stream() -> Heldout:
        return Heldout(load(prepared), torch.arange(20), 6, 0)

    expected = stream().take(0, 8)
    found = [stream().take(first, 2) for first in (0, 2, 4, 6)]
    assert same([[[batch]] for batch in expected], [[[batch]] for part in found for batch in part])


def test_each_image_has_a_draw_of_its_own(prepared: Path) -> None:
    data = load(prepared)
    images = data.images["train"]
    assert isinstance(images, streaming.ImageFiles)
    keys = [[(0, stream, place) for place in range(20)] for stream in range(2)]
    one, other = images.stream(keys, RANDOM, 3)
    assert len({image.numpy().tobytes() for image in torch.cat([one, other])}) > 35
    plain = every_image(images)[0]
    (flips,) = images.stream([[(0, 0, place) for place in range(200)]], Augmentation(flip=True), 3)
    mirrored = sum(torch.equal(flip, plain.flip(1)) for flip in flips)
    assert all(torch.equal(flip, plain) or torch.equal(flip, plain.flip(1)) for flip in flips) and 70 < mirrored < 130
    (shifts,) = images.stream([[(0, 0, place) for place in range(50)]], Augmentation(crop_padding=2), 3)
    padded = torch.nn.functional.pad(plain, (0, 0, 2, 2, 2, 2))
    windows = {padded[i : i + SIZE, j : j + SIZE].numpy().tobytes() for i in range(5) for j in range(5)}
    found = {shift.numpy().tobytes() for shift in shifts}
    assert found <= windows and len(found) > 12


def test_draws_follow_from_seed_epoch_stream_and_place(prepared: Path) -> None:
    data, copies = load(prepared), torch.zeros(21, dtype=torch.long)  # one image over and over: only draws can differ

    def draws(seed: int, number: int) -> list[bytes]:
        batches = Batches(data, copies, 7, seed, RANDOM, streams=2).epoch(number)
        return [images.numpy().tobytes() for (streams,) in batches for images, _ in streams]

    first = draws(0, 0)
    assert first == draws(0, 0)
    every = [*first, *draws(0, 1), *draws(1, 0)]  # three batches of two streams each
    assert len(every) == 18 and len(set(every)) == 18


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn", "randaugment", "trivialaugment"])
def test_policies_are_torchvisions_own(prepared: Path, image_folder: Path, policy: Any) -> None:
    from torchvision.transforms import v2

    smooth = v2.InterpolationMode.BILINEAR
    reference = {
        "imagenet": v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, smooth),
        "cifar10": v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, smooth),
        "svhn": v2.AutoAugment(v2.AutoAugmentPolicy.SVHN, smooth),
        "randaugment": v2.RandAugment(interpolation=smooth),
        "trivialaugment": v2.TrivialAugmentWide(interpolation=smooth),
    }[policy]
    images = load(prepared, workers=2).images["train"]
    assert isinstance(images, streaming.ImageFiles)
    keys = [(number % 5, 1, number) for number in range(24)]
    (found,) = images.stream([keys], Augmentation(auto_augment=policy), 3)
    changed = 0
    for key, image in zip(keys, found, strict=True):
        plain = Image.fromarray(by_hand(image_folder / os.fsdecode(images.paths[key[0]]), images.crop))
        with seeding.scoped(3, *key[1:]):
            expected = np.asarray(reference(plain))
        assert np.array_equal(image.numpy(), expected)
        changed += not np.array_equal(expected, np.asarray(plain))
    assert changed > 8


def test_a_policy_needs_files(digits: Prepared) -> None:
    with pytest.raises(UserError, match=r"augmentation\.auto_augment: is for image folders only, .* take crop_padding"):
        Batches(digits, torch.arange(50), 10, 0, Augmentation(auto_augment="randaugment"))


def test_rectangles_are_erased_from_files_as_from_memory(prepared: Path) -> None:
    data, how = load(prepared), Augmentation(random_erasing=0.6)
    memory = Prepared({"train": every_image(data.images["train"])}, data.labels, data.mean, data.std, data.classes)
    whole = epoch(data, 1, augmentation=how)
    assert same(whole, epoch(memory, 1, augmentation=how))
    assert same(epoch(load(prepared, workers=2), 1, start=1, augmentation=how), whole[1:])
    assert not same(whole, epoch(data, 1, augmentation=None))


def test_a_random_rectangle_needs_files(digits: Prepared) -> None:
    with pytest.raises(UserError, match="resized_crop: is for image folders only"):
        Batches(digits, torch.arange(50), 10, 0, RANDOM)


@pytest.mark.parametrize("keep", [True, False])
def test_scores_of_a_streamed_split_are_those_of_a_whole_one(
    prepared: Path, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIZE * SIZE * 3, 3))
    data = load(prepared, keep=9 * SIZE * SIZE * 3 - (not keep))
    split = data.split("test")
    assert isinstance(split, Streamed)
    whole = data.normalise(every_image(data.images["test"])), data.labels["test"]
    decoded: list[int] = []
    decode = streaming.ImageFiles.decode
    monkeypatch.setattr(streaming.ImageFiles, "decode", lambda self, n: (decoded.append(n), decode(self, n))[1])
    assert [len(y) for _, y in in_batches(split, 5)] == [5, 4]
    for batch_size in (4, 100):
        assert evaluate(network, split, batch_size) == evaluate(network, whole, batch_size)
    # Scored once it takes no memory; one that is scored again is decoded once more, and kept where it may be.
    assert len(decoded) == 9 * (2 if keep else 3)


def test_a_job_of_fewer_processors_than_workers_says_so(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(prepared)
    space = nasbench201.build(SPACE)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    for workers, said in ((3, ""), (16, "run.workers is 16, but this job has 3 processors: so many decode pictures")):
        job = Job(STAGES["rank"], Params({"device": "cpu"}), {}, workers=workers)
        found = job.data(space).images["test"]
        assert isinstance(found, streaming.ImageFiles) and found.workers == 3
        assert capsys.readouterr().err.strip().endswith(said) and bool(said) == (workers > 3)


def test_calibration_images_are_streamed(prepared: Path) -> None:
    data = load(prepared)
    batches = calibration_batches(data, CalibrationSettings(images=12, batch_size=6))
    draw = data.balanced_draw(12, 0)
    expected = data.normalise(every_image(data.images["train"])[draw])
    assert torch.equal(torch.cat(tuple(batches)), expected)


# Bad images.


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["pixels", "another", "gone"])
def test_an_image_that_went_bad_is_named(image_folder: Path, tmp_path: Path, workers: int, fault: str) -> None:
    root = Path(shutil.copytree(image_folder, tmp_path / "images"))
    bad = sorted((root / "test/bee").glob("*.png"))[0]
    content = bad.read_bytes()
    if fault == "pixels":  # the header is whole, and so preparation does not see it
        bad.write_bytes(content[:-40] + bytes(8) + content[-32:])
    data = load(made(root, tmp_path / "prepared"), workers=workers)
    if fault == "another":
        bad.write_bytes(content + b"x")
    elif fault == "gone":
        bad.unlink()
    message = {"pixels": "cannot be decoded", "another": "changed since", "gone": "no such file any more"}[fault]
    with pytest.raises(UserError, match=f"^{bad}: {message}.*run prepare_data again$") as error:
        every_image(data.images["test"])
    assert "\n" not in str(error.value)


def test_workers_leave_signals_to_the_main_process(prepared: Path) -> None:
    """A scheduler signals every process of a job; the main one must still get its batches, and end at its exit."""
    code = f"""
import multiprocessing, pathlib, torch
from sumnas.data import Batches, load
epoch = Batches(load(pathlib.Path({str(prepared)!r}), workers=2), torch.arange(33), 2, 0).epoch(0)
next(epoch), next(epoch)  # one of each worker: both are past their start
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
input()
print(sum(1 for _ in range(12) if next(epoch)), flush=True)  # and the rest is never asked for
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin and process.stdout
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert workers
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            for pid in workers:
                os.kill(pid, number)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "12\n"
        assert process.wait(timeout=60) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    finally:
        process.kill()
        process.communicate()


def test_workers_end_with_a_main_process_that_was_killed(prepared: Path) -> None:
    code = f"""
import multiprocessing, pathlib, torch
from sumnas.data import Batches, load
epoch = Batches(load(pathlib.Path({str(prepared)!r}), workers=2), torch.arange(33), 2, 0).epoch(0)
next(epoch), next(epoch)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
input()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    workers = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.communicate()
    assert len(workers) == 2

    def runs(pid: int) -> bool:  # one that has ended may wait for whoever has adopted it
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    deadline = time.monotonic() + 60
    while any(map(runs, workers)):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.1)


def test_a_worker_that_dies_is_told_without_a_traceback(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming.ImageFiles, "decode", lambda _self, _number: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="a process that decodes images died .* lower run.workers"):
        every_image(load(prepared, workers=1).images["train"])


def test_a_listing_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,label\na,0\n")
    with pytest.raises(UserError, match=r"train\.csv: not a listing with columns path, label, width"):
        streaming.read_listing(tmp_path / "train.csv")
