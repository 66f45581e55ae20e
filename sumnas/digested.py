"""Settings whose digest survives a new key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer


class Digested(BaseModel):
    """A block of settings whose plain form, of which digests are taken, leaves out what it may.

    `left_out` has keys with the value at which they are: digests are then those of before there was the key.
    """

    left_out: ClassVar[Mapping[str, object]]

    @model_serializer(mode="wrap")
    def _plain(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = plain(self)
        return {k: v for k, v in found.items() if k not in self.left_out or v != self.left_out[k]}
