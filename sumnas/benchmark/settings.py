"""Blocks `benchmark` and `further`: where the true accuracies come from."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sumnas.recipe import Recipe

COLUMN_NAME = re.compile(r"[a-z][a-z0-9_]*")
"""Names of further costs and accuracies: they become columns and measures, and a search limit names them."""

SETS = {
    ("cifar10-valid", "train"): "train",
    ("cifar10-valid", "validation"): "x-valid",
    ("cifar10-valid", "test"): "ori-test",
    ("cifar10", "train"): "train",
    ("cifar10", "test"): "ori-test",
    ("cifar100", "train"): "train",
    ("cifar100", "validation"): "x-valid",
    ("cifar100", "test"): "x-test",
    ("cifar100", "validation_and_test"): "ori-test",
    ("ImageNet16-120", "train"): "train",
    ("ImageNet16-120", "validation"): "x-valid",
    ("ImageNet16-120", "test"): "x-test",
    ("ImageNet16-120", "validation_and_test"): "ori-test",
}
"""The official name of the images an accuracy is of, by data set and split.

As `get_more_info` of the official programs reports them: its train-, valid-, test- and valtest-accuracy. `cifar10` was
trained on all 50,000 training images, so it has no validation images; of the others the official test images are
halved into validation and test.
"""


class PoolSettings(BaseModel):
    """A pool of architectures, each trained from scratch with every seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architectures: Annotated[int, Field(ge=2)] | Annotated[list[str], Field(min_length=2)] = Field(
        description="how many are drawn from those whose output depends on the input, or their strings"
    )
    strategy: Literal["uniform", "macs"] = Field(
        "uniform", description="how they are drawn: all alike, or at even steps from the fewest to the most MACs"
    )
    seeds: list[int] = Field(min_length=1, description="several tell how reliable the accuracies are")
    seed: int = Field(0, ge=0, description="of the draw")
    recipe: Recipe = Field(description="how each architecture is trained")

    @model_validator(mode="after")
    def _something_to_draw(self) -> PoolSettings:
        if self.strategy == "macs" and isinstance(self.architectures, list):
            raise ValueError("strategy macs is for a number of architectures; these are listed")
        return self


class OfficialSettings(BaseModel):
    """The official files of NATS-Bench's topology space or of NAS-Bench-201. The defaults are the paper's reference."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        min_length=1,
        description="nats: the folder, or the .tar file with or without its ending; nasbench201: the .pth file",
    )
    dataset: Literal["cifar10", "cifar10-valid", "cifar100", "ImageNet16-120"] = Field(
        "cifar10", description="that the accuracies are of; cifar10-valid was trained on half of the training images"
    )
    epochs: Literal[12, 200] = Field(200, description="of the official training, which is there in two lengths")
    split: Literal["train", "validation", "test", "validation_and_test"] = Field(
        "test", description="images that the accuracies are of"
    )
    incomplete: Literal["error", "accept"] = Field("error", description="what to do where architectures are absent")

    @model_validator(mode="after")
    def _split_is_there(self) -> OfficialSettings:
        if (self.dataset, self.split) not in SETS:
            there = ", ".join(split for dataset, split in SETS if dataset == self.dataset)
            hint = " (cifar10-valid has a validation split)" if self.dataset == "cifar10" else ""
            raise ValueError(f"{self.dataset} has no split {self.split!r}; there are {there}{hint}")
        return self

    @property
    def set_name(self) -> str:
        """The official name of the images that the accuracy is of."""
        return SETS[self.dataset, self.split]


class TableSettings(BaseModel):
    """A CSV file with a column of architecture strings, and accuracies in percent: one column, or one per seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, description="the CSV file")
    architecture: str = Field("architecture", description="name of the column")
    accuracy: str = Field("accuracy", description="name of the column")
    seeds: list[str] = Field([], description="columns with the accuracy of one seed each, whose mean is the accuracy")
    index: str | None = Field(None, description="column of official indices, where a further file goes by them")
    costs: dict[str, str] = Field({}, description="further costs: name in the table, and column")

    @model_validator(mode="after")
    def _one_kind_of_accuracy(self) -> TableSettings:
        if self.seeds and "accuracy" in self.model_fields_set:
            raise ValueError("names both accuracy and seeds; the accuracy is the mean of the seeds")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("names a column of seeds twice")
        return self

    @field_validator("costs")
    @classmethod
    def _names(cls, costs: dict[str, str]) -> dict[str, str]:
        return _checked(costs)


class CostFileSettings(BaseModel):
    """A further CSV file with measured costs, of every architecture in the table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, description="the CSV file")
    architecture: str | None = Field(None, description="column of architecture strings")
    index: str | None = Field(None, description="or column of official indices")
    columns: dict[str, str] = Field(min_length=1, description="name in the table, and column")

    @model_validator(mode="after")
    def _one_key(self) -> CostFileSettings:
        if (self.architecture is None) == (self.index is None):
            raise ValueError("give the column of architecture strings or that of official indices, one of the two")
        return self

    @field_validator("columns")
    @classmethod
    def _names(cls, columns: dict[str, str]) -> dict[str, str]:
        return _checked(columns)


def _checked(named: dict[str, str]) -> dict[str, str]:
    for name in named:
        if not COLUMN_NAME.fullmatch(name):
            raise ValueError(f"{name!r}: such a name is lower case: letters, digits, '_' ({COLUMN_NAME.pattern})")
    return named


class FurtherSettings(BaseModel):
    """An entry of block `further`: accuracies from a published source, such as those on another data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["nats", "nasbench201", "table"] = Field(description="which of the blocks below is read")
    nats: OfficialSettings | None = Field(None, description="files of NATS-Bench's topology space")
    nasbench201: OfficialSettings | None = Field(None, description="the official file of NAS-Bench-201")
    table: TableSettings | None = Field(None, description="a CSV file")

    @model_validator(mode="after")
    def _source_is_there(self) -> Self:
        if getattr(self, self.source) is None:
            raise ValueError(f"source is {self.source!r}, but it has no block {self.source}")
        return self


class BenchmarkSettings(BaseModel):
    """Block `benchmark`. Only the block of the source in use is needed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["pool", "nats", "nasbench201", "table"] = Field(
        description="which of the blocks below is used; pool: architectures are trained here"
    )
    pool: PoolSettings | None = Field(None, description="architectures that are drawn and trained here")
    nats: OfficialSettings | None = Field(None, description="files of NATS-Bench's topology space")
    nasbench201: OfficialSettings | None = Field(None, description="the official file of NAS-Bench-201")
    table: TableSettings | None = Field(None, description="a CSV file")
    costs: CostFileSettings | None = Field(None, description="further costs of all architectures, from a file")

    @model_validator(mode="after")
    def _source_is_there(self) -> BenchmarkSettings:
        if getattr(self, self.source) is None:
            raise ValueError(f"source is {self.source!r}, but there is no block benchmark.{self.source}")
        if self.costs and self.costs.index is not None:
            if self.source == "pool":
                raise ValueError("costs.index: a pool has no official indices; use costs.architecture")
            if self.source == "table" and self.table and self.table.index is None:
                raise ValueError("costs.index needs table.index, the column of the same indices")
        return self
