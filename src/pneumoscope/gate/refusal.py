"""Why an image is not analysed: a key that is counted, and a sentence that is read."""

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
    """`why` goes on after "not analysed, because"."""

    key: Key
    why: str

    def __str__(self) -> str:
        return f"not analysed, because {self.why}"
