"""The runtime of a bundle's network: OpenVINO, several times as fast on CPUs, or PyTorch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.bundle.bundle import Bundle
from pneumoscope.bundle.forked import refuse_fork
from pneumoscope.errors import BundleError, ConfigError
from pneumoscope.images.preparation import Pixels

if TYPE_CHECKING:
    import openvino

Engine = Literal["auto", "openvino", "torch"]
Logits = NDArray[np.float32]
Maps = NDArray[np.float32]
ENGINES: tuple[Engine, ...] = ("auto", "openvino", "torch")
_INSTALL = "pip install openvino"
logger = logging.getLogger(__name__)


def _no_features(pixels: Pixels) -> tuple[Logits, Logits]:
    raise ConfigError("this runtime gives no features", remedy="open it with features=True")


@dataclass(frozen=True)
class Runtime:
    """`logits`: float32 [B, classes] from uint8 [B, S, S], from any thread; `engine`: what computes them.

    `answer`: the same logits, and float32 [B, F], what the head reads (with `mirror` the mean of both views); only
    where features were asked for.

    `maps`: float32 [V, B, C, h, w], the last map of each of the V views (the image, with `mirror` its mirror image as
    well), whose mean over h and w is all that the linear head reads; None where the runtime has none.
    """

    engine: str
    logits: Callable[[Pixels], Logits]
    answer: Callable[[Pixels], tuple[Logits, Logits]] = _no_features
    maps: Callable[[Pixels], Maps | None] = lambda pixels: None


def open_runtime(
    bundle: Bundle,
    *,
    engine: Engine = "auto",
    device: str = "cpu",
    threads: int | None = None,
    features: bool = False,
) -> Runtime:
    """Make a bundle's network ready to compute.

    Args:
        bundle: as loaded.
        engine: `auto` takes OpenVINO on a CPU where it is installed and the bundle holds a model for it, and
            otherwise PyTorch, with a message that gives the reason.
        device: a PyTorch device; other than `cpu` it implies PyTorch.
        threads: how many threads compute (None: as many as there are cores).
        features: also give what the head reads; logits stay the same, to the bit.

    Raises:
        ConfigError: the engine asked for is not installed or cannot use the device.
        BundleError: the bundle holds no model for it, or a damaged one.
    """
    if engine not in ENGINES:
        raise ConfigError(f"no engine is called {engine!r}", remedy=f"use one of {', '.join(ENGINES)}")
    if engine == "auto":
        reason = _openvino_fault(bundle, device)
        if reason and device == "cpu":
            logger.warning("PyTorch computes, which is slower, because %s", reason)
        engine = "torch" if reason else "openvino"
    elif engine == "openvino" and (reason := _openvino_fault(bundle, device)):
        raise ConfigError(f"OpenVINO cannot compute, because {reason}", remedy='use the engine "torch"')
    if engine == "openvino":
        return _openvino(bundle, threads, features)
    return _torch(bundle, device, threads)


def _openvino_fault(bundle: Bundle, device: str) -> str | None:
    if device != "cpu":
        return f"the device is {device}"
    if not bundle.card["runtime"]["files"]:
        return f"the bundle {bundle.name} holds no model for it"
    try:
        import_openvino()
    except ImportError:
        return f"it is not installed ({_INSTALL})"
    return None


def import_openvino() -> Any:
    """Return the module without its telemetry: Pneumoscope contacts no server by itself."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@cache
def openvino_core() -> Any:
    """Return OpenVINO's core, one for the process: with the last of several its plugin would be unloaded, while threads
    that computed with it live on."""
    return import_openvino().Core()


def _openvino(bundle: Bundle, threads: int | None, features: bool) -> Runtime:
    infer = _compiled(bundle, threads, _read_by_head if features else None)

    def logits(pixels: Pixels) -> Logits:
        return np.array(infer(pixels)[0], dtype=np.float32)

    def answer(pixels: Pixels) -> tuple[Logits, Logits]:
        outputs = infer(pixels)
        views = np.array(outputs[1], dtype=np.float32).reshape(-1, len(pixels), outputs[1].shape[-1])
        return np.array(outputs[0], dtype=np.float32), views.mean(axis=0)

    @cache  # compiled apart, at first use: one more output slows every answer
    def mapped() -> Callable[[Pixels], Any] | None:
        try:
            return _compiled(bundle, threads, _read_by_pool)
        except _NoMapError:
            return None

    def maps(pixels: Pixels) -> Maps | None:
        if (compute := mapped()) is None:
            return None
        values = np.array(compute(pixels)[1], dtype=np.float32)
        return values.reshape(-1, len(pixels), *values.shape[1:])

    return Runtime("openvino", logits, answer if features else _no_features, maps)


class _NoMapError(Exception):
    """The head reads something else than the mean of a map."""


def _compiled(
    bundle: Bundle, threads: int | None, also: Callable[[openvino.Model], Any] | None
) -> Callable[[Pixels], Any]:
    """Return a function that gives the logits and, second, the output that `also` picks; safe from any thread."""
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # The default takes bf16 where the CPU offers it, which is slower without AMX and changes answers.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino_core()
    files = bundle.runtime_files()
    try:
        model: openvino.Model = core.read_model(*(files[name] for name in sorted(files, reverse=True)))
        if also is not None:
            model.add_outputs([also(model)])
        compiled: openvino.CompiledModel = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().rsplit("\n", maxsplit=1)[-1][:200]
        raise BundleError(
            f"OpenVINO cannot read its model ({reason})", path=bundle.folder, remedy='use the engine "torch"'
        ) from error

    def infer(pixels: Pixels) -> Any:
        # A request of its own, because one request serves one thread.
        return compiled.create_infer_request().infer([np.ascontiguousarray(pixels)], share_inputs=True)

    return infer


def _read_by_head(model: openvino.Model) -> Any:
    """Return the output that the last matrix product reads: the head is one linear layer."""
    node = model.get_results()[0]
    while node.get_type_name() != "MatMul":
        if not node.get_input_size():
            raise RuntimeError("no linear head was found in it")
        node = node.input_value(0).get_node()
    source = node.input_value(0)
    quantised = source.get_node().get_type_name() == "FakeQuantize"
    return source.get_node().input_value(0) if quantised else source


def _read_by_pool(model: openvino.Model) -> Any:
    """Return the map [V*B, C, h, w] whose mean over h and w the head reads."""
    source = _read_by_head(model)
    while source.get_node().get_type_name() in ("Reshape", "Squeeze", "FakeQuantize"):
        source = source.get_node().input_value(0)
    if source.get_node().get_type_name() != "ReduceMean":
        raise _NoMapError
    maps = source.get_node().input_value(0)
    before, after = maps.get_partial_shape(), list(source.get_partial_shape())
    # The mean's axes may be computed, not constant: its shapes show them.
    if len(before) != 4 or after[1] != before[1] or any(size != 1 for size in after[2:]):
        raise _NoMapError
    return maps


def _torch(bundle: Bundle, device: str, threads: int | None) -> Runtime:
    import torch

    from pneumoscope.networks.export import Deployed

    refuse_fork()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        network = Deployed(bundle.network, bundle.preparation).eval().to(device)
    except RuntimeError as error:
        raise ConfigError(f"PyTorch cannot use the device {device!r}", remedy='use "cpu"') from error

    def answer(pixels: Pixels) -> tuple[Logits, Logits]:
        refuse_fork()
        with torch.inference_mode():
            outputs = network.answer(torch.from_numpy(pixels).to(device))
        logits, features = (part.float().cpu().numpy() for part in outputs)
        return logits, features

    return Runtime("torch", lambda pixels: answer(pixels)[0], answer)
