"""Answers as they come, and as a table: for a loop, a frame of pandas, and a notebook."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from pneumoscope.records import Prediction, html_table

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20  # rows in a notebook


class Predictions(Iterator[Prediction]):
    """The predictions of `Classifier.predict`, in the order of the images, computed as they are asked for.

    Like any iterator it is passed through once. In a notebook it shows the first twenty, which stay to be asked for.
    `total`: how many there will be, where that is known.

    >>> predictions = pneumoscope.load("fast").predict(["chest.png", "nowhere.png"])
    >>> [prediction.error for prediction in predictions]
    [None, 'nowhere.png: no such file; check the path']
    """

    def __init__(self, answers: Iterator[Prediction], total: int | None = None) -> None:
        self._answers = answers
        self._ahead: deque[Prediction] = deque()
        self.total = total

    def __iter__(self) -> Predictions:
        return self

    def __next__(self) -> Prediction:
        return self._ahead.popleft() if self._ahead else next(self._answers)

    def close(self) -> None:
        """End early: what was read ahead is dropped."""
        self._ahead.clear()
        close = getattr(self._answers, "close", None)
        if close is not None:
            close()

    def __repr__(self) -> str:
        known = "" if self.total is None else f" of {self.total} images"
        return f"<predictions{known}, computed as they are asked for: loop over them, or pneumoscope.frame(...)>"

    def _repr_html_(self) -> str:
        self._ahead.extend(islice(self._answers, _SHOWN + 1 - len(self._ahead)))
        rows = list(islice(self._ahead, _SHOWN))
        return html_table(rows, more=len(self._ahead) > len(rows))


def frame(predictions: Iterable[Prediction]) -> pd.DataFrame:
    """Return one row per prediction: the columns of the `predict` line, `bacterial`, `viral`, `logit` and `error`.

    `probability` is NaN where there is no answer; `abstained`, `reason` and `error` say why. In a notebook, progress is
    shown. One prediction alone gives one row.

    >>> table = pneumoscope.frame(pneumoscope.load().predict("chest.png"))
    >>> table.loc[0, "label"], bool(table.loc[0, "probability"] < table.loc[0, "threshold"])
    ('NORMAL', True)
    """
    import pandas as pd

    from pneumoscope.notebook import watched

    if isinstance(predictions, Prediction):
        predictions = [predictions]
    given: object = predictions
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise TypeError(
            f"a frame is made of predictions, not of {type(predictions).__name__}; give classifier.predict(...)"
        )
    rows = [_row(prediction) for prediction in watched(predictions, getattr(predictions, "total", None))]
    made = pd.DataFrame(rows, columns=list(_row(_NOTHING)))
    numbers = ["probability", "threshold", "bacterial", "viral", "logit", "milliseconds"]
    return made.astype(dict.fromkeys(numbers, "float64"))


def _row(prediction: object) -> dict[str, Any]:
    if not isinstance(prediction, Prediction):
        raise TypeError(f"a frame is made of predictions, not of {type(prediction).__name__}")
    line = prediction.as_json()
    subtype = line.pop("subtype") or {}
    return {
        **{name: line[name] for name in ("path", "probability", "label", "threshold")},
        "bacterial": subtype.get("bacterial"),
        "viral": subtype.get("viral"),
        **{name: line[name] for name in ("abstained", "reason")},
        "error": line.get("error"),
        "logit": prediction.logit,
        "notes": "; ".join(prediction.quality.get("notes", ())),
        **{name: line[name] for name in ("bundle", "milliseconds")},
    }


_NOTHING = Prediction("", None, None, 0.0)
