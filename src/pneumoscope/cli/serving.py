"""`pneumoscope serve`, and the users of its page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.console import say
from pneumoscope.errors import ConfigError

if TYPE_CHECKING:
    from pneumoscope.serving.settings.gateway import Gateway
    from pneumoscope.serving.store.database import Store

Config = Annotated[Path, typer.Option("--config", help="The gateway's TOML file.")]
users = typer.Typer(no_args_is_help=True, help="Who may use the gateway's page.")


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(serve)
    app.add_typer(users, name="users")


def serve(
    config: Config,
    check: Annotated[bool, typer.Option("--check", help="Check the configuration, and do not start.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="Run only receive, poll, worker, send, retain or web; may be given again. The others run elsewhere.",
        ),
    ] = None,
) -> None:
    """Work beside a PACS: receive radiographs, analyse them, send results. Needs the extra `serve`."""
    from pneumoscope.records import RESEARCH_ONLY

    with extra():
        from pneumoscope.serving.run.supervisor import serve as run
        from pneumoscope.serving.settings.gateway import load_gateway
        from pneumoscope.serving.settings.process_names import KINDS

    gateway = load_gateway(config)
    say(RESEARCH_ONLY)
    if not check:
        run(gateway, only or KINDS)
        return
    from pneumoscope.serving.run.check import check as look

    fatal = False
    for item in look(gateway):
        mark = "ok" if item.fault is None else "FAULT" if item.fatal else "note"
        typer.echo(f"{mark:5}  {item.subject}: {item.message}")
        fatal |= item.fault is not None and item.fatal
    if fatal:
        raise typer.Exit(1)


@users.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Letters, digits, dots, dashes.")],
    config: Config,
    role: Annotated[str, typer.Option("--role", help="viewer, reader (gives feedback, uploads) or admin.")] = "reader",
) -> None:
    """Add a user of the page; the password is asked for, or read from standard input."""
    with extra():
        from pneumoscope.serving.people.accounts import add_user
    with opened(config) as (_, store):
        add_user(store, name, role, _password())
    typer.echo(f"{name}: {role}")


@users.command("list")
def list_(config: Config) -> None:
    """List the users of the page with their roles."""
    with extra():
        from pneumoscope.serving.people.accounts import users as every
    with opened(config) as (_, store):
        for user in every(store):
            typer.echo(f"{user.name}: {user.role}" + (", disabled" if user.disabled else ""))


@users.command("disable")
def disable(name: Annotated[str, typer.Argument(help="Of the user.")], config: Config) -> None:
    """Disable a user's sign-in; past actions stay in the audit trail."""
    with extra():
        from pneumoscope.serving.people.accounts import disable_user
    with opened(config) as (_, store):
        disable_user(store, name)
    typer.echo(f"{name}: disabled")


@contextmanager
def extra() -> Iterator[None]:
    """Name the missing package where the extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the gateway needs {error.name}, which is not installed", remedy="pip install 'pneumoscope[serve]'"
        ) from error


@contextmanager
def opened(config: Path) -> Iterator[tuple[Gateway, Store]]:
    """Yield a gateway's configuration with its tables, which are created if missing."""
    from pneumoscope.files import private_folder
    from pneumoscope.serving.settings.gateway import load_gateway
    from pneumoscope.serving.store.database import open_store

    gateway = load_gateway(config)
    private_folder(gateway.folder)
    store = open_store(gateway.database, create=True)
    try:
        yield gateway, store
    finally:
        store.close()


def _password() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")
