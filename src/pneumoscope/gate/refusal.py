"""Why an image is not analysed: a key for programs, and a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Key = Literal[
    # the header
    "no pixels", "frames", "raw", "modality", "view", "body part", "age",
    # the pixels
    "flat", "too small", "inverted", "rotated", "not a chest", "exposure", "cropped", "lateral", "unlike",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Refusal:
    """`key` stands in JSON; `reason` goes on after "not analysed, because"."""

    key: Key
    reason: str

    def __str__(self) -> str:
        return f"not analysed, because {self.reason}"
