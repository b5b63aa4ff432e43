"""Explanations: one signature, `(classifier, canvas, options) -> Heatmap`, many methods.

A new method is one function and one line in `METHODS`. A method's module is loaded at first use: most need
PyTorch, and showing a stored map does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import cast

from pneumoscope.explanation.method import Method, Options

__all__ = ["METHODS", "Method", "Options"]


class _Methods(Mapping[str, Method]):
    """Functions by name, from the names of their modules."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = dict(paths)

    def __getitem__(self, name: str) -> Method:
        module, _, function = self._paths[name].partition(".")
        return cast(Method, getattr(import_module(f"{__name__}.{module}"), function))

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


METHODS: Mapping[str, Method] = _Methods(
    {
        "gradcam": "gradcam.gradcam",
        "gradcam++": "cam.gradcam_plus",
        "hirescam": "cam.hirescam",
        "layercam": "cam.layercam",
        "integrated-gradients": "gradients.integrated_gradients",
        "occlusion": "occlusion.occlusion",
        "lime": "surrogate.lime",
        "shap": "surrogate.shap",
        "shap-partition": "partition.shap_partition",
    }
)
