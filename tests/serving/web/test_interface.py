"""The interface answers as its own description says, whatever is sent to it, and whoever sends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.support.gateway import chest
from tests.support.web import PASSWORD, WebApp, answer, bring, opened

from pneumoscope.serving.people import accounts
from pneumoscope.serving.web.guard import COOKIE

CONFORMANCE = [status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 3  # of each kind and route


def operations(web: WebApp) -> list[Any]:
    """Every route as it is described; the one that ends the sign-in at last."""
    schema = schemathesis.openapi.from_dict(web.app.openapi())
    schema.app = web.app
    operations = [result.ok() for result in schema.get_all_operations()]
    return sorted(operations, key=lambda operation: operation.path == "/signout")


def probe(operation: Any, headers: dict[str, str]) -> set[int]:
    """Ask what fits the description and what does not; returns which statuses came. Raises `FailureGroup`."""
    # that something is not well is what /readyz is to tell with 503
    checks, reached = CONFORMANCE + ([] if operation.path == "/readyz" else [not_a_server_error]), set()

    def ask(case: Any) -> None:
        answered = case.call(headers=headers, allow_redirects=False)
        reached.add(answered.status_code)
        case.validate_response(answered, checks=checks)

    takes_anything = operation.path_parameters or operation.query or operation.body
    limits = settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    kinds: list[dict[str, Any]] = [{"generation_mode": GenerationMode.POSITIVE}]
    if takes_anything and "{study}" not in operation.path:  # any text may name a study
        kinds.append({"generation_mode": GenerationMode.NEGATIVE})
    if "{image_id}" in operation.path:
        kinds.append({"path_parameters": {"image_id": 1}})  # which there is
    for kind in kinds:
        seed(0)(limits(given(case=operation.as_strategy(**kind))(ask)))()
    return reached


@pytest.mark.slow
@pytest.mark.parametrize("role", [None, *accounts.ROLES])
def test_whatever_is_asked_is_answered_as_described(tmp_path: Path, with_users: Path, role: str | None) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    with opened(tmp_path / "gateway", with_users, stow={"token_file": str(token)}) as web:
        answer(web, bring(web, chest()))
        headers = {"Authorization": f"Bearer {token.read_text()}"}
        if role is not None:
            person = accounts.sign_in(web.store, role, PASSWORD, 60)
            assert person is not None
            headers |= {"Cookie": f"{COOKIE}={person.token}", "X-Form-Secret": accounts.form_secret(person.token)}
        described = operations(web)
        assert len(described) >= 20
        reached, wrong = set(), []
        for operation in described:
            try:
                reached |= probe(operation, headers)
            except FailureGroup as group:
                wrong += [f"{operation.label}: {fault}" for fault in group.exceptions]
        assert wrong == []
        assert reached >= {200, 401}
        assert role is None or 422 in reached
