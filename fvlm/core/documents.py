"""Typed JSON documents: what a stage leaves for those behind it."""

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """Frozen, strictly typed, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
