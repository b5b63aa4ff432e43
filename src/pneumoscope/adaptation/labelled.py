"""Labelled images of one site as the bundle reads them: canvases, logits, embeddings, patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pneumoscope.data.cache import open_cache
from pneumoscope.data.manifest import Manifest
from pneumoscope.images.preparation import Pixels, Preparation
from pneumoscope.networks.network import Network
from pneumoscope.networks.transforms import prepare
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA, Bools, Floats

_BATCH = 32


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Labelled images.

    `y`: bool [n], pneumonia; `patients`: str [n]; `logits`: float64 [n, C], the bundle's own; `features`: float64
    [n, F], what its linear head reads; `canvases`: uint8 [n, canvas, canvas]; `failed`: reasons by path.
    """

    y: Bools
    patients: NDArray[np.str_]
    logits: Floats
    features: Floats
    canvases: Pixels
    failed: Mapping[str, str]

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.y.size)

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return int(np.unique(self.patients).size)

    def take(self, chosen: NDArray[Any]) -> Labelled:
        """Return the images of a mask, bool [n], or at positions, int [m]."""
        return replace(
            self,
            y=self.y[chosen],
            patients=self.patients[chosen],
            logits=self.logits[chosen],
            features=self.features[chosen],
            canvases=self.canvases[chosen],
        )

    def counts(self) -> dict[str, int]:
        """Return how many images, patients, and images with pneumonia there are."""
        return {"images": self.n, "patients": self.n_patients, "with_pneumonia": int(self.y.sum())}


def read_labelled(classifier: Classifier, manifest: Manifest) -> Labelled:
    """Decode the labelled images of a manifest and compute them with the bundle; unreadable ones are in `failed`.

    Raises:
        DataError: no image has a label, or none can be read.
        BundleError: the bundle's PyTorch weights are missing or do not fit.
    """
    samples = manifest.labelled().samples
    preparation = classifier.bundle.preparation
    cache = open_cache(samples, canvas=preparation.canvas, aspect=preparation.aspect, crop=classifier.crop)
    readable = [(sample, row) for sample, row in zip(samples, cache.rows, strict=True) if row >= 0]
    canvases = np.array(cache.pixels[[row for _, row in readable]])
    parts = [classifier.logits(canvases[start : start + _BATCH]) for start in range(0, len(canvases), _BATCH)]
    return Labelled(
        np.array([sample.label == PNEUMONIA for sample, _ in readable]),
        np.array([sample.patient_id for sample, _ in readable], dtype=str),
        np.concatenate(parts).astype(np.float64),
        head_features(classifier.bundle.network, canvases, preparation),
        canvases,
        cache.failed,
    )


def head_features(network: Network, canvases: Pixels, preparation: Preparation) -> Floats:
    """Return float64 [n, F] from uint8 [n, canvas, canvas], from which the head gives the bundle's answer.

    With `mirror` both views are averaged: a linear head then gives the mean logits.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(canvases), _BATCH):
            images = prepare(torch.from_numpy(np.array(canvases[start : start + _BATCH])), preparation)
            embedding = network.embed(images)
            if preparation.mirror:
                turned = images.flip(-1).contiguous(memory_format=torch.channels_last)
                embedding = (embedding + network.embed(turned)) / 2
            parts.append(embedding.double().numpy())
    return np.concatenate(parts)


def head_logits(network: Network, features: Floats) -> Floats:
    """Return logits float64 [n, C] of features [n, F] by a network's head."""
    linear = linear_of(network)
    return np.asarray(features @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy())


def linear_of(network: Network) -> nn.Linear:
    """Return the linear layer that ends a network."""
    layers = [module for module in network.head if isinstance(module, nn.Linear)]
    return layers[-1]
