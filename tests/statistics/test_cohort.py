"""Labels, scores and patients, checked and bound together."""

from __future__ import annotations

import pytest

from pneumoscope.errors import DataError
from pneumoscope.statistics.cohort import cohort


def test_a_cohort_does_not_depend_on_the_order_of_its_images():
    c = cohort([0, 1, 1], [0.1, 0.2, 0.3], ["z", "a", "z"])
    assert c.codes.tolist() == [1, 0, 1]
    assert (c.n, c.n_patients, c.clustered, c.one_class) == (3, 2, True, False)
    with pytest.raises(DataError, match="differ in length"):
        cohort([0, 1], [0.1, 0.2], ["a"])
