"""Not worse by more than a margin, or the same within it: tests of what `no difference` cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike
from scipy import stats

from pneumoscope.errors import DataError
from pneumoscope.records import Estimate
from pneumoscope.statistics.auc import paired_auroc
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.proportions import Z95

ALPHA = 0.025  # one-sided


@dataclass(frozen=True, slots=True)
class MarginTest:
    """A figure of a minus that of b against a margin, given before the data were seen.

    `p_noninferior`: one-sided, of a being worse than b by `margin` or more. `p_equivalent`: the larger of the two
    one-sided p values (Schuirmann 1987). `noninferior`, `equivalent`: p under `ALPHA`, that is the 95 % interval
    lies above -margin, or within -margin..margin.
    """

    difference: Estimate
    margin: float
    p_noninferior: float
    p_equivalent: float

    @property
    def noninferior(self) -> bool:
        """Whether a is shown to be not worse than b by the margin."""
        return bool(self.p_noninferior < ALPHA)

    @property
    def equivalent(self) -> bool:
        """Whether a and b are shown to differ by less than the margin."""
        return bool(self.p_equivalent < ALPHA)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, the difference in the form of `metrics.json`."""
        return {
            "difference": self.difference.as_json(),
            "margin": self.margin,
            "p_noninferior": self.p_noninferior,
            "noninferior": self.noninferior,
            "p_equivalent": self.p_equivalent,
            "equivalent": self.equivalent,
        }


def margin_test(difference: Estimate, margin: float) -> MarginTest:
    """Test a difference with a symmetric 95 % interval (normal) against `margin` > 0; p is NaN without interval.

    Raises `DataError` for a margin that is not positive.
    """
    if not margin > 0:
        raise DataError(f"the margin is {margin}", remedy="give a positive number, chosen before the data are seen")
    error = (difference.high - difference.low) / (2 * Z95)
    if not error > 0:
        return MarginTest(difference, margin, float("nan"), float("nan"))
    below = float(stats.norm.sf((difference.value + margin) / error))
    above = float(stats.norm.sf((margin - difference.value) / error))
    return MarginTest(difference, margin, below, max(below, above))


def auroc_margin(
    y: ArrayLike, score_a: ArrayLike, score_b: ArrayLike, patients: Sequence[Any], margin: float
) -> MarginTest:
    """Test the AUROC of a against that of b over the same images; DeLong, Obuchowski where patients repeat.

    `y`: 0/1 [n]; `score_a`, `score_b`: [n]; `patients`: [n] keys; `margin`: > 0. Where both order the images alike
    there is no variance and p is NaN.
    """
    return margin_test(paired_auroc(cohort(y, score_a, patients), cohort(y, score_b, patients)).difference, margin)
