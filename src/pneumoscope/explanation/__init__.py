"""Why the network answered so: one signature, `(classifier, canvas, options) -> Heatmap`, many methods.

A new method is one function and one line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pneumoscope.explanation.cam import gradcam, gradcam_plus, hirescam, layercam
from pneumoscope.explanation.gradients import integrated_gradients
from pneumoscope.explanation.method import Method, Options
from pneumoscope.explanation.occlusion import occlusion
from pneumoscope.explanation.partition import shap_partition
from pneumoscope.explanation.surrogate import lime, shap

__all__ = ["METHODS", "Method", "Options"]

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "gradcam": gradcam,
        "gradcam++": gradcam_plus,
        "hirescam": hirescam,
        "layercam": layercam,
        "integrated-gradients": integrated_gradients,
        "occlusion": occlusion,
        "lime": lime,
        "shap": shap,
        "shap-partition": shap_partition,
    }
)
