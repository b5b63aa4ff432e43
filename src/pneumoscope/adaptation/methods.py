"""What can be changed of a bundle, simplest first: one function from local images to a change for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pneumoscope.adaptation.labelled import Labelled, head_features, head_logits, linear_of
from pneumoscope.adaptation.normalisation import LEAST, has_batch_norm, renormalised
from pneumoscope.adaptation.shrinkage import INNER, HeadChange, calibration_near, head_near
from pneumoscope.bundle.bundle import Bundle
from pneumoscope.bundle.calibration import estimate_prevalence, operating_points, pneumonia_logit, probabilities
from pneumoscope.networks.network import Network, round_weights
from pneumoscope.records import Floats

_THRESHOLD_DRAWS = 200


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """What a fit starts from: the bundle, the share of pneumonia it was calibrated at (None: unknown), a seed."""

    bundle: Bundle
    prevalence: float | None
    seed: int

    @property
    def point(self) -> str:
        """The operating point in use."""
        return str(self.bundle.card["operating_point"])

    @property
    def threshold(self) -> float:
        """Its threshold."""
        return float(self.bundle.card["operating_points"][self.point]["threshold"])


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A fitted change of a bundle.

    `network`: with other batch-norm statistics, None for the bundle's own; `head`: what is added to its log-odds;
    `points`: new operating points in the form of the card, None where the thresholds stay; `note`: its estimate.
    """

    temperature: float
    bias: float
    network: Network | None = None
    head: HeadChange | None = None
    points: Mapping[str, Any] | None = None
    note: str = ""

    @property
    def weights(self) -> bool:
        """Whether the network itself changes."""
        return self.network is not None or self.head is not None

    def probability(self, bundle: Bundle, images: Labelled) -> Floats:
        """Return the probabilities of pneumonia of images, float64 [n]."""
        logits = images.logits.copy()
        if self.network is not None:
            logits = _logits_by(self.network, bundle, images)
        odds = pneumonia_logit(logits / self.temperature) + self.bias
        if self.head is not None:
            odds = odds + self.head.added(images.features)
        return np.asarray(1 / (1 + np.exp(-odds)))

    def threshold(self, basis: Basis) -> float:
        """Return the threshold in use after the change."""
        return basis.threshold if self.points is None else float(self.points[basis.point]["threshold"])

    def applied(self, bundle: Bundle) -> Network:
        """Return the changed network, rounded as bundles store it; the bundle's own stays as it is."""
        network = deepcopy(self.network or bundle.network)
        if self.head is not None:
            linear = linear_of(network)
            direction, shift = torch.from_numpy(self.head.direction), self.head.shift
            with torch.no_grad():  # the same for every kind of pneumonia, before the temperature divides
                linear.weight[1:] += (self.temperature * direction).float()
                linear.bias[1:] += self.temperature * shift
        round_weights(network)
        return network


Fit = Callable[[Basis, Labelled], Change]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to change a bundle: what it does in words, whether it needs labels or changes weights, its fit."""

    says: str
    labels: bool
    weights: bool
    fit: Fit


def _as_it_is(basis: Basis, _: Labelled) -> Change:
    return Change(*basis.bundle.calibration)


def _prior_shift(basis: Basis, images: Labelled) -> Change:
    temperature, bias = basis.bundle.calibration
    assert basis.prevalence is not None
    share = estimate_prevalence(probabilities(images.logits, temperature, bias)[0], basis.prevalence)
    moved = np.log(share / (1 - share)) - np.log(basis.prevalence / (1 - basis.prevalence))
    return Change(temperature, bias + float(moved), note=f"estimated share of pneumonia {share:.3f}")


def _thresholds(basis: Basis, images: Labelled) -> Change:
    change = Change(*basis.bundle.calibration)
    return _with_points(basis, images, change, change.probability(basis.bundle, images))


def _bias(basis: Basis, images: Labelled) -> Change:
    temperature, bias = calibration_near(images.logits, images.y, basis.bundle.calibration, temperature=False)
    change = Change(temperature, bias)
    return _with_points(basis, images, change, change.probability(basis.bundle, images))


def _temperature_and_bias(basis: Basis, images: Labelled) -> Change:
    change = Change(*calibration_near(images.logits, images.y, basis.bundle.calibration))
    return _with_points(basis, images, change, change.probability(basis.bundle, images))


def _batch_norm(basis: Basis, images: Labelled) -> Change:
    network = renormalised(basis.bundle.network, images.canvases, basis.bundle.preparation, seed=basis.seed)
    return Change(*basis.bundle.calibration, network=network)


def _batch_norm_calibrated(basis: Basis, images: Labelled) -> Change:
    network = _batch_norm(basis, images).network
    assert network is not None
    logits = _logits_by(network, basis.bundle, images)
    change = Change(*calibration_near(logits, images.y, basis.bundle.calibration), network=network)
    odds = pneumonia_logit(logits / change.temperature) + change.bias
    return _with_points(basis, images, change, np.asarray(1 / (1 + np.exp(-odds))))


def _head(basis: Basis, images: Labelled) -> Change:
    temperature, bias = calibration_near(images.logits, images.y, basis.bundle.calibration)
    offset = pneumonia_logit(images.logits / temperature) + bias
    head = head_near(images.features, images.y, images.patients, offset, seed=basis.seed)
    honest = 1 / (1 + np.exp(-(offset + head.out_of_fold)))
    return _with_points(basis, images, Change(temperature, bias, head=head), honest)


METHODS: Mapping[str, Method] = {
    "as it is": Method("no change", False, False, _as_it_is),
    "prior shift": Method(
        "the share of pneumonia estimated from the scores, without labels, and put in Bayes' rule (Saerens 2002)",
        False, False, _prior_shift,
    ),
    "thresholds": Method("thresholds chosen anew, probabilities as they are", True, False, _thresholds),
    "bias": Method("log-odds plus one number, and thresholds", True, False, _bias),
    "temperature and bias": Method(
        "log-odds divided by one number plus another, and thresholds", True, False, _temperature_and_bias
    ),
    "batch norm": Method(
        "batch-norm statistics of these images, without labels (Schneider 2020)", False, True, _batch_norm
    ),
    "batch norm, temperature and bias": Method(
        "batch-norm statistics of these images, then temperature, bias and thresholds", True, True,
        _batch_norm_calibrated,
    ),
    "head": Method(
        "the linear head fitted anew on the bundle's embeddings, pulled to the original; temperature, bias, thresholds",
        True, True, _head,
    ),
}  # fmt: skip


def method_fault(name: str, basis: Basis, images: Labelled, labels: bool) -> str | None:
    """Return why a method cannot be fitted to these images, None where it can."""
    method = METHODS[name]
    if method.labels and not labels:
        return "needs labels"
    if method.labels and (images.y.all() or not images.y.any()):
        return "the labelled images are of one class"
    if name == "prior shift" and basis.prevalence is None:
        return "the card does not say at what share of pneumonia the probabilities were calibrated"
    return _weights_fault(method, basis, images) if method.weights else None


def _weights_fault(method: Method, basis: Basis, images: Labelled) -> str | None:
    if basis.bundle.card["runtime"].get("precision") != "fp32":
        return "the bundle is quantised or has no runtime model: adapt the one it came from, then quantise that"
    if method.fit is _head:
        each = min(np.unique(images.patients[images.y == kind]).size for kind in (True, False))
        return f"fewer than {INNER} patients of a class" if each < INNER else None
    if not has_batch_norm(basis.bundle.network):
        return "the network has no batch norm"
    return f"fewer than {LEAST} images" if images.n < LEAST else None


def _logits_by(network: Network, bundle: Bundle, images: Labelled) -> Floats:
    return head_logits(network, head_features(network, images.canvases, bundle.preparation))


def _with_points(basis: Basis, images: Labelled, change: Change, honest: Floats) -> Change:
    """Return the change with operating points chosen on probabilities [n] of the images that it was fitted to."""
    points = operating_points(images.y, honest, images.patients.tolist(), seed=basis.seed, resamples=_THRESHOLD_DRAWS)
    new = {name: point.as_json() for name, point in points.items()}
    on_card = {**basis.bundle.card["operating_points"], **new}
    return Change(change.temperature, change.bias, change.network, change.head, on_card, change.note)
