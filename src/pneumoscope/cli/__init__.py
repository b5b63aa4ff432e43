"""The command line: thin verbs over the library; heavy imports happen inside the commands."""

from __future__ import annotations

from pneumoscope.cli.root import main

__all__ = ["main"]
