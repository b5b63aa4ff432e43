"""The databases that a gateway may have."""

from __future__ import annotations

import pytest

DATABASES = ("sqlite", "postgresql")


def database_of(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the section `store` of a gateway's file for the kind that is the fixture's parameter."""
    if request.param == "sqlite":
        return {}
    return {"url": request.getfixturevalue("postgres").database(request.getfixturevalue("migrated"))}
