"""A network as one ONNX file that needs nothing of ours: uint8 pixels in, logits out."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pneumoscope.images.preparation import Preparation
from pneumoscope.networks.network import Network, answer
from pneumoscope.networks.transforms import standardise

_OPSET = 17


class Deployed(nn.Module):
    """A network with its normalisation and its views: what runs after `preparation.to_input`."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, preparation: Preparation) -> None:
        super().__init__()
        self.network, self.mirror = network, preparation.mirror
        self.register_buffer("mean", torch.tensor(preparation.mean))
        self.register_buffer("std", torch.tensor(preparation.std))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits float32 [B, classes] from uint8 [B, S, S]."""
        return answer(self.network, self._images(pixels), mirror=self.mirror)

    def answer(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same logits, and what the head reads, float32 [B, F], the mean of the views."""
        images = self._images(pixels)
        if self.mirror:
            images = torch.cat([images, images.flip(-1)]).contiguous(memory_format=torch.channels_last)
        features = self.network.embed(images)
        both = self.network.head(features), features
        logits, read = (part.reshape(-1, len(pixels), part.shape[-1]).mean(dim=0) for part in both)
        return logits, read

    def _images(self, pixels: Tensor) -> Tensor:
        images = standardise(pixels[:, None], self.mean, self.std)
        return images.contiguous(memory_format=torch.channels_last)


def to_onnx(network: Network, preparation: Preparation) -> bytes:
    """Return an ONNX model with input `pixels` uint8 [n, S, S] and output `logits` float32 [n, classes].

    The network is left in eval mode. Matrices, which the bundle rounds to half precision, are stored as such and
    widened on loading: the file is half the size and computes the same.

    Raises:
        RuntimeError: the network has an operation that ONNX has no word for.
    """
    return from_pixels(Deployed(network, preparation), preparation.size, "logits")


def from_pixels(module: nn.Module, size: int, output: str) -> bytes:
    """Return the ONNX model of any module from uint8 [n, size, size] to a tensor with n rows, in the same way."""
    module.eval()
    example = torch.zeros(2, size, size, dtype=torch.uint8)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder) / "model.onnx"
        # The successor of this exporter takes another package and ten times as long, and gives the same graph.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            module, (example,), file, dynamo=False, opset_version=_OPSET, do_constant_folding=False,
            input_names=["pixels"], output_names=[output],
            dynamic_axes={"pixels": {0: "n"}, output: {0: "n"}},
            # Otherwise batch norm is folded into the matrices, which then are no halves any more.
            training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
        model = onnx.load(file)
    _halve(model.graph)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _halve(graph: onnx.GraphProto) -> None:
    """Store each matrix that half precision holds exactly as such, followed by a cast."""
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        halves = values.astype(np.float16) if values.dtype == np.float32 and values.ndim > 1 else None
        if halves is None or not np.array_equal(halves.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(halves, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.widen", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
