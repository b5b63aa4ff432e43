"""What the names of the Kermany files say."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.data import naming
from pneumoscope.data.naming import patient_from_name, subtype_from_name


@pytest.mark.parametrize(
    ("name", "patient", "subtype"),
    [
        ("person17_virus_48.jpeg", "virus-person17", "viral"),
        ("person17_bacteria_56.jpeg", "bacteria-person17", "bacterial"),
        ("person0017_bacteria_56.jpeg", "bacteria-person17", "bacterial"),
        ("IM-0115-0001.jpeg", "IM-0115", None),
        ("IM-0115-0001-0002.jpeg", "IM-0115", None),
        ("NORMAL2-IM-0587-0001-0002.jpeg", "NORMAL2-IM-0587", None),
        ("train/PNEUMONIA/person17_virus_48.jpeg", "virus-person17", "viral"),
        ("person_virus_48.jpeg", None, None),
        ("person17_fungus_48.jpeg", None, None),
        ("a_person17_virus_48.jpeg", None, None),
        ("chest.png", None, None),
        ("", None, None),
    ],
)
def test_names(name: str, patient: str | None, subtype: str | None) -> None:
    assert (patient_from_name(name), subtype_from_name(name)) == (patient, subtype)


numbers = st.integers(1, 99_999)


@given(numbers, numbers, numbers)
def test_one_number_of_two_series_is_two_patients(number: int, first: int, second: int) -> None:
    names = [
        f"person{number}_virus_{first}.jpeg", f"person{number}_bacteria_{first}.jpeg",
        f"IM-{number:04d}-{first:04d}.jpeg", f"NORMAL2-IM-{number:04d}-{first:04d}.jpeg",
    ]  # fmt: skip
    assert len({patient_from_name(name) for name in names}) == 4
    again = [name.replace(f"_{first}.", f"_{second}.").replace(f"-{first:04d}.", f"-{second:04d}.") for name in names]
    assert [patient_from_name(name) for name in again] == [patient_from_name(name) for name in names]


@given(st.text())
def test_any_text_is_a_name(name: str) -> None:
    assert patient_from_name(name) is None or patient_from_name(name)
    assert subtype_from_name(name) is None or subtype_from_name(name)


def test_the_examples_of_the_docstrings() -> None:
    assert doctest.testmod(naming) == (0, 2)


@pytest.mark.data
def test_every_real_name_is_understood(real_data) -> None:  # type: ignore[no-untyped-def]
    files = [path for path in (real_data / "kermany224").rglob("*.jpeg") if not path.name.startswith(".")]
    assert len(files) > 5000
    unknown = [path.name for path in files if patient_from_name(path.name) is None]
    assert unknown == []
    assert all((subtype_from_name(path.name) is not None) == (path.parent.name == "PNEUMONIA") for path in files)
    both = {
        (s.split("-person")[1]) for s in map(patient_from_name, [p.name for p in files]) if s and s.startswith("virus")
    }
    bacterial = {s.split("-person")[1] for s in map(patient_from_name, [p.name for p in files]) if s and s[0] == "b"}
    assert len(both & bacterial) > 700, "numbers are given out anew for each subtype"
