"""Block `benchmark`: where the true accuracies come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sumnas.retraining import Recipe


class PoolSettings(BaseModel):
    """A pool of architectures, each trained from scratch with every seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architectures: Annotated[int, Field(ge=2)] | Annotated[list[str], Field(min_length=2)] = Field(
        description="how many are drawn uniformly from those whose output depends on the input, or their strings"
    )
    seeds: list[int] = Field(min_length=1, description="several tell how reliable the accuracies are")
    seed: int = Field(0, ge=0, description="of the draw")
    recipe: Recipe


class TableSettings(BaseModel):
    """A CSV file with a column of architecture strings and one of accuracies in percent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    architecture: str = Field("architecture", description="name of the column")
    accuracy: str = Field("accuracy", description="name of the column")


class BenchmarkSettings(BaseModel):
    """Block `benchmark`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["pool", "table"]
    pool: PoolSettings | None = None
    table: TableSettings | None = None

    @model_validator(mode="after")
    def _source_is_there(self) -> BenchmarkSettings:
        if getattr(self, self.source) is None:
            raise ValueError(f"source is {self.source!r}, but there is no block benchmark.{self.source}")
        return self
