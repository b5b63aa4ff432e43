"""What a source's own labels mean: NORMAL and PNEUMONIA, or by a map such as `0=NORMAL,1=PNEUMONIA`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pneumoscope.errors import ConfigError
from pneumoscope.records import LABELS


@dataclass(frozen=True)
class Labels:
    """`mapped`: a source's own word, in lower case, to NORMAL or PNEUMONIA; these two always mean themselves."""

    mapped: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that are known."""
        return (*LABELS, *self.mapped)

    @property
    def remedy(self) -> str:
        """What else can be done about an unknown one."""
        return "; or say what your words mean, as in --label-map 0=NORMAL,1=PNEUMONIA"

    def label(self, word: str) -> str | None:
        """Return NORMAL or PNEUMONIA, None for an unknown word; capitals do not matter, nor does 1.0 for 1."""
        key = word.strip().lower()
        if key.upper() in LABELS and key not in self.mapped:
            return key.upper()
        return self.mapped.get(key) or self.mapped.get(key.removesuffix(".0"))


PLAIN = Labels()


def label_map(text: str | Mapping[object, object] | None) -> Labels:
    """Read a map from `WORD=NORMAL,WORD=PNEUMONIA`, or from a dictionary; None is the empty one.

    >>> label_map("0=NORMAL, 1=PNEUMONIA").label("1")
    'PNEUMONIA'

    Raises:
        ConfigError: it has another form, a word twice, or another label.
    """
    if text is None:
        return PLAIN
    if isinstance(text, str):
        parts = [part.rpartition("=") for part in text.split(",") if part.strip()]
        pairs = [(word.strip(), label.strip()) for word, _, label in parts]
    else:
        pairs = [(str(word), str(label)) for word, label in text.items()]
    mapped: dict[str, str] = {}
    for word, label in pairs:
        if not word or label.upper() not in LABELS:
            raise ConfigError(f"the label map {text!r} is none", remedy="write 0=NORMAL,1=PNEUMONIA")
        if mapped.setdefault(word.lower(), label.upper()) != label.upper():
            raise ConfigError(f"the label map gives {word!r} two labels", remedy="name each word once")
    if not mapped:
        raise ConfigError("the label map is empty", remedy="write 0=NORMAL,1=PNEUMONIA")
    return Labels(mapped)
