"""The processes of a gateway: their kinds and names."""

from __future__ import annotations

from collections.abc import Collection

from pneumoscope.serving.settings.gateway import Gateway, Retention

KINDS = ("receive", "poll", "worker", "send", "retain", "web")


def names(config: Gateway, kinds: Collection[str] = KINDS) -> tuple[str, ...]:
    """Return the processes of these kinds that a configuration needs."""
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
    """Return the name under which a process beats and leases jobs, with the host where several share a database."""
    return f"{name}@{config.host}" if config.host else name
