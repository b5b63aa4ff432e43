"""The processes of a gateway: their kinds, and what each is called."""

from __future__ import annotations

from collections.abc import Collection

from pneumoscope.serving.settings.gateway import Gateway, Retention

KINDS = ("receive", "poll", "worker", "send", "retain", "web")


def names(config: Gateway, kinds: Collection[str] = KINDS) -> tuple[str, ...]:
    """Return the processes that a configuration asks for, those of some kinds alone where others run elsewhere."""
    workers = [f"worker-{number}" for number in range(1, config.worker.count + 1)]
    poll = ["poll"] if config.orthanc else []
    send = ["send"] if config.deliveries else []
    retain = ["retain"] if config.retention != Retention() else []
    every = (*workers, "receive", *poll, *send, *retain, "web")
    return tuple(name for name in every if kind_of(name) in kinds)


def kind_of(name: str) -> str:
    """Return the kind of a process: `worker` of `worker-2` and `worker-2@host`."""
    return name.partition("@")[0].partition("-")[0]


def signed(config: Gateway, name: str) -> str:
    """Return the name under which a process beats and holds jobs: no other host has the same."""
    return f"{name}@{config.host}" if config.host else name
