"""Why the network answered so: one signature, `(classifier, canvas) -> Heatmap`, many methods.

A new method is one module and one line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from pneumoscope.explanation.gradcam import gradcam
from pneumoscope.predict import Classifier
from pneumoscope.preparation import Pixels
from pneumoscope.records import Heatmap

Method = Callable[[Classifier, Pixels], Heatmap]
METHODS: Mapping[str, Method] = MappingProxyType({"gradcam": gradcam})
