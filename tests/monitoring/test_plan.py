"""How soon: large changes before small ones, nothing that the reference cannot show."""

from __future__ import annotations

from tests.support import monitored

from pneumoscope.monitoring.detector import Budget
from pneumoscope.monitoring.plan import plan


def test_larger_changes_are_found_sooner() -> None:
    result = plan(monitored.reference(), Budget(labels_a_year=1_000), labels_a_day=5, draws=5)
    rows = {row["change"]: row for row in result["rows"]}
    half, one = (rows[f"brightness by {size} standard deviation"]["median"] for size in ("half a", "one"))
    assert one <= half < 100
    few, many = (rows[f"{share} % of the truth turned round"]["median"] for share in (5, 20))
    assert many is not None
    assert few is None or many < few
    assert not any("noise" in name for name in rows), "the reference holds no noise"


def test_without_labels_there_is_no_row_about_the_truth() -> None:
    result = plan(monitored.reference(), Budget(), draws=5)
    assert {row["by"] for row in result["rows"]} == {"images"}
