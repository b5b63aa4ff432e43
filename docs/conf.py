"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

from pneumoscope.version import __version__

project = "Pneumoscope"
author = "The Pneumoscope maintainers"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "images"]
templates_path = ["_templates"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "literal"
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
autodoc_inherit_docstrings = False
autodoc_type_aliases = {name: name for name in ("ArrayLike", "Floats", "Ints", "Bools", "Pixels", "Keys", "Statistic")}
add_module_names = False
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"Pneumoscope {release}"
html_theme_options = {
    "announcement": "For research use only. Not for diagnosis.",
    "light_css_variables": {"color-brand-primary": "#0b5d7a", "color-brand-content": "#0b5d7a"},
    "dark_css_variables": {"color-brand-primary": "#6fc3df", "color-brand-content": "#6fc3df"},
}


def as_rst(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Turn a docstring, written to be read as plain text, into reStructuredText."""
    escaped: list[str] = []
    for number, part in enumerate("\n".join(lines).split("`")):
        escaped.append(part if number % 2 else re.sub(r"([|*\\])", r"\\\1", part))
    result: list[str] = []
    for line in "`".join(escaped).split("\n"):
        before = result[-1] if result else ""
        if line.startswith("- ") and before and not before.startswith(("- ", "  ")):
            result.append("")  # a list begins
        if before.startswith(("- ", "  ")) and line and line[0] not in "- " and _in_list(result):
            result.append("")  # and ends
        if what == "module" and line.startswith("    ") and not before.startswith("    "):
            result += [*([""] if before else []), "::", ""]  # a drawing: keep its lines as they are
        result.append(line)
    lines[:] = result


def _in_list(lines: list[str]) -> bool:
    for line in reversed(lines):
        if not line.startswith("  "):
            return line.startswith("- ")
    return False


def plain_aliases(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write an alias within another type by its name."""

    def plain(text: str | None) -> str | None:
        return None if text is None else re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text)

    return plain(signature), plain(returns)


def setup(app: Sphinx) -> None:
    """Connect before napoleon, which understands `Args:`, `Returns:` and `Raises:`."""
    app.connect("autodoc-process-docstring", as_rst, priority=400)
    app.connect("autodoc-process-signature", plain_aliases)
