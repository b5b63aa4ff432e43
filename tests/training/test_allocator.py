"""Memory that was freed is used again, without asking the kernel."""

from __future__ import annotations

import platform

import pytest
from tests.support.fresh import run

from pneumoscope.training.allocator import keep_freed_memory

# In a process of its own, because the setting stays.
FAULTS = """
import resource, sys
import torch
from pneumoscope.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
network = torch.nn.Sequential(*[torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)])
images = torch.ones(8, 8, 128, 128)
def step():
    network(images).sum().backward()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = run(FAULTS, mode)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again() -> None:
    assert faults("keep") * 10 < faults("default")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
