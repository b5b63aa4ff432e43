"""Labels beside the answers that they judge: each counts at the time of its image, once for each study."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from pneumoscope.monitoring.stream import Rows, Stream, Texts, Times, Truths
from pneumoscope.records import Bools, Floats, Ints

_SLACK = np.timedelta64(1, "h")  # clocks of two machines


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Studies with an answer and a label, in the order in which labels arrived.

    `row`: of the label. `at`: of the image. `called`, `positive`: bool. `probability`: the study's highest, which made
    the call. `chance`: of having been asked for, NaN without a design. `patient`: pseudonyms, those of the study where
    no patient is known. `refused`: how many labels were left out, by reason.
    """

    row: Ints
    at: Times
    given: Times
    called: Bools
    positive: Bools
    probability: Floats
    chance: Floats
    patient: Texts
    reader: Texts
    blind: Bools
    study: Texts
    refused: dict[str, int]

    def __len__(self) -> int:
        return int(self.row.size)

    def take(self, which: Any) -> Judged:
        """Return some of them."""
        names = [each.name for each in fields(self) if each.name != "refused"]
        return Judged(**{name: getattr(self, name)[which] for name in names}, refused=self.refused)


@dataclass
class Answers:
    """Of the studies and answers that have a label: when the image came, the probability, threshold and patient.

    `of`: by the study's pseudonym, or the answer's key. Of several images of a study the highest probability makes the
    call. `study`: of answers, by their key.
    """

    bundle: str
    wanted: Texts
    of: dict[str, tuple[np.datetime64, float, float, str]] = field(default_factory=dict)
    study: dict[str, str] = field(default_factory=dict)

    def add(self, rows: Rows) -> None:
        """Take answers; those of other bundles and those without a score are left out."""
        chosen = np.isin(rows.text["study"], self.wanted) | np.isin(rows.text["key"], self.wanted)
        chosen &= (rows.text["bundle"] == self.bundle) & np.isfinite(rows.number["probability"])
        rows = rows.take(chosen)
        columns = (
            rows.text["study"].tolist(), rows.text["key"].tolist(), rows.at, rows.number["probability"].tolist(),
            rows.number["threshold"].tolist(), rows.text["patient"].tolist(),
        )  # fmt: skip
        for study, key, at, probability, threshold, patient in zip(*columns, strict=True):
            self.study[key] = study
            self.of[key] = (at, probability, threshold, patient or study or key)
            known = self.of.get(study) if study else None
            if study and (known is None or probability > known[1]):
                self.of[study] = (at if known is None else known[0], probability, threshold, patient or study)


def judged(truths: Truths, answers: Answers) -> Judged:
    """Join labels and answers; counts those left out: without an answer, older than the image, repeated."""
    refused = {"no answer of this bundle": 0, "older than its image": 0, "study labelled again": 0}
    kept, facts, names, seen = [], [], [], set()
    for index, (study, key) in enumerate(zip(truths.study.tolist(), truths.answer.tolist(), strict=True)):
        answer = answers.of.get(key) or answers.of.get(study)
        name = study or answers.study.get(key) or key
        if answer is None:
            refused["no answer of this bundle"] += 1
        elif truths.at[index] < answer[0] - _SLACK:
            refused["older than its image"] += 1
        elif name in seen:
            refused["study labelled again"] += 1  # later readings show agreement, not more studies
        else:
            seen.add(name)
            names.append(name)
            kept.append(index)
            facts.append(answer)
    which = np.array(kept, np.int64)
    probability = np.array([fact[1] for fact in facts], np.float64)
    return Judged(
        truths.row[which],
        np.array([fact[0] for fact in facts], "datetime64[ms]"),
        truths.at[which],
        probability >= np.array([fact[2] for fact in facts], np.float64),
        truths.positive[which],
        probability,
        truths.chance[which],
        np.array([fact[3] for fact in facts], np.str_),
        truths.reader[which],
        truths.blind[which],
        np.array(names, np.str_),
        refused,
    )


def labels_of(stream: Stream, bundle: str) -> Judged:
    """Return the labels of a journal beside the answers of one bundle."""
    truths = stream.truths()
    answers = Answers(
        bundle, np.unique(np.concatenate([truths.study[truths.study != ""], truths.answer[truths.answer != ""]]))
    )
    for piece in stream.pieces(light=True) if truths.study.size else ():
        answers.add(piece)
    return judged(truths, answers)
