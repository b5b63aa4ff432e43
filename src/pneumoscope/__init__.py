"""Pneumoscope: tells pneumonia from normal on chest radiographs, proves how well, and shows why.

    import pneumoscope

    classifier = pneumoscope.load()
    for prediction in classifier.predict("images"):
        print(prediction.path, prediction.label, prediction.probability)

Research use only. Nothing here is a medical device.
"""

from __future__ import annotations

from importlib import import_module

from pneumoscope.version import __version__

TYPE_CHECKING = False  # true to type checkers, which know the name; importing `typing` for it takes 7 ms
if TYPE_CHECKING:
    from pneumoscope.api import compare, evaluate, explain, load, validate
    from pneumoscope.data.manifest import Manifest
    from pneumoscope.data.sources import open_source
    from pneumoscope.errors import PneumoscopeError
    from pneumoscope.predict import Classifier
    from pneumoscope.predictions import Predictions, frame
    from pneumoscope.records import Heatmap, Prediction

__all__ = [
    "Classifier",
    "Heatmap",
    "Manifest",
    "PneumoscopeError",
    "Prediction",
    "Predictions",
    "__version__",
    "compare",
    "evaluate",
    "explain",
    "frame",
    "load",
    "open_source",
    "validate",
]

# Imported when first asked for: the whole of it takes a second, and `pneumoscope --help` must not.
_MODULES = {
    "Classifier": "predict",
    "Heatmap": "records",
    "Manifest": "data.manifest",
    "PneumoscopeError": "errors",
    "Prediction": "records",
    "Predictions": "predictions",
    "compare": "api",
    "evaluate": "api",
    "explain": "api",
    "frame": "predictions",
    "load": "api",
    "open_source": "data.sources",
    "validate": "api",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
