"""Features of a frozen encoder, computed once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pneumoscope.data.cache import PixelCache
from pneumoscope.files import atomic_path
from pneumoscope.images.preparation import Preparation
from pneumoscope.networks.network import Network, answer
from pneumoscope.networks.transforms import prepare
from pneumoscope.records import Progress

_BATCH = 32


def encode(
    network: Network,
    cache: PixelCache,
    preparation: Preparation,
    *,
    device: torch.device,
    progress: Progress | None = None,
) -> Tensor:
    """Return features float32 [M, F] of all rows of the cache, without augmentation, in eval mode.

    They are kept beside the pixels, under a hash of the encoder's weights and the preparation.
    """
    file = cache.folder.parent / "features" / f"{_key(network, cache, preparation)}.npy"
    if file.is_file():
        return torch.from_numpy(np.load(file, allow_pickle=False))
    network = network.to(device).eval()
    parts: list[Tensor] = []
    count = max(cache.rows) + 1
    with torch.inference_mode():
        for start in range(0, count, _BATCH):
            canvases = torch.from_numpy(np.array(cache.pixels[start : min(start + _BATCH, count)]))
            parts.append(network.embed(prepare(canvases.to(device), preparation)).float().cpu())
            if progress:
                progress(min(start + _BATCH, count), count)
    features = torch.cat(parts)
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        np.save(stream, features.numpy())
    return features.clone()


def _key(network: Network, cache: PixelCache, preparation: Preparation) -> str:
    digest = hashlib.sha256(f"{cache.folder.name}{preparation}{torch.__version__}".encode())
    for name, tensor in network.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def predict_logits(
    network: Network, cache: PixelCache, rows: Sequence[int], preparation: Preparation, device: torch.device
) -> Tensor:
    """Return logits float32 [n, classes] of some rows of the cache, in eval mode, as the bundle will answer."""
    network = network.to(device).eval()
    parts: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(rows), _BATCH):
            chosen = list(rows[start : start + _BATCH])
            canvases = torch.from_numpy(np.array(cache.pixels[chosen]))
            images = prepare(canvases.to(device), preparation)
            parts.append(answer(network, images, mirror=preparation.mirror).float().cpu())
    return torch.cat(parts)


def best_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
