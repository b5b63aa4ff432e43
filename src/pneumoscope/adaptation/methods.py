"""What can be changed of a bundle, simplest first: one function from local images to a change for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pneumoscope.adaptation.fitting import INNER, HeadChange, calibration_near, head_near
from pneumoscope.adaptation.material import Material, head_features, head_logits, linear_of
from pneumoscope.adaptation.normalisation import LEAST, has_batch_norm, renormalised
from pneumoscope.bundle.calibration import estimate_prevalence, operating_points, pneumonia_logit, probabilities
from pneumoscope.bundle.files import Bundle
from pneumoscope.cohort import Floats
from pneumoscope.networks.network import Network, round_weights

_THRESHOLD_DRAWS = 200


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """What a fit starts from: the bundle, the share of pneumonia it was calibrated at (None: not known), a seed."""

    bundle: Bundle
    taught: float | None
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
    `points`: new operating points in the form of the card, None where the thresholds stay; `note`: what was found.
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

    def probability(self, bundle: Bundle, images: Material) -> Floats:
        """Return the probabilities of pneumonia of images, float64 [n]."""
        logits = images.logits.copy()
        if self.network is not None:
            logits = _seen_anew(self.network, bundle, images)
        odds = pneumonia_logit(logits / self.temperature) + self.bias
        if self.head is not None:
            odds = odds + self.head.added(images.features)
        return np.asarray(1 / (1 + np.exp(-odds)))

    def threshold(self, site: Site) -> float:
        """Return the threshold in use after the change."""
        return site.threshold if self.points is None else float(self.points[site.point]["threshold"])

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


Fit = Callable[[Site, Material], Change]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to change a bundle: what it does in words, whether it needs labels or changes weights, its fit."""

    says: str
    labels: bool
    weights: bool
    fit: Fit


def _as_it_is(site: Site, _: Material) -> Change:
    return Change(*site.bundle.calibration)


def _prior_shift(site: Site, images: Material) -> Change:
    temperature, bias = site.bundle.calibration
    assert site.taught is not None
    share = estimate_prevalence(probabilities(images.logits, temperature, bias)[0], site.taught)
    moved = np.log(share / (1 - share)) - np.log(site.taught / (1 - site.taught))
    return Change(temperature, bias + float(moved), note=f"estimated share of pneumonia {share:.3f}")


def _thresholds(site: Site, images: Material) -> Change:
    change = Change(*site.bundle.calibration)
    return _with_points(site, images, change, change.probability(site.bundle, images))


def _bias(site: Site, images: Material) -> Change:
    temperature, bias = calibration_near(images.logits, images.y, site.bundle.calibration, temperature=False)
    change = Change(temperature, bias)
    return _with_points(site, images, change, change.probability(site.bundle, images))


def _temperature_and_bias(site: Site, images: Material) -> Change:
    change = Change(*calibration_near(images.logits, images.y, site.bundle.calibration))
    return _with_points(site, images, change, change.probability(site.bundle, images))


def _batch_norm(site: Site, images: Material) -> Change:
    network = renormalised(site.bundle.network, images.canvases, site.bundle.preparation, seed=site.seed)
    return Change(*site.bundle.calibration, network=network)


def _batch_norm_calibrated(site: Site, images: Material) -> Change:
    network = _batch_norm(site, images).network
    assert network is not None
    logits = _seen_anew(network, site.bundle, images)
    change = Change(*calibration_near(logits, images.y, site.bundle.calibration), network=network)
    odds = pneumonia_logit(logits / change.temperature) + change.bias
    return _with_points(site, images, change, np.asarray(1 / (1 + np.exp(-odds))))


def _head(site: Site, images: Material) -> Change:
    temperature, bias = calibration_near(images.logits, images.y, site.bundle.calibration)
    offset = pneumonia_logit(images.logits / temperature) + bias
    head = head_near(images.features, images.y, images.patients, offset, seed=site.seed)
    honest = 1 / (1 + np.exp(-(offset + head.out_of_fold)))
    return _with_points(site, images, Change(temperature, bias, head=head), honest)


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


def why_not(name: str, site: Site, images: Material, labels: bool) -> str | None:
    """Return why a method cannot be fitted to these images, None where it can."""
    method = METHODS[name]
    if method.labels and not labels:
        return "needs labels"
    if method.labels and (images.y.all() or not images.y.any()):
        return "the labelled images are of one class"
    if name == "prior shift" and site.taught is None:
        return "the card does not say at what share of pneumonia the probabilities were calibrated"
    return _why_not_weights(method, site, images) if method.weights else None


def _why_not_weights(method: Method, site: Site, images: Material) -> str | None:
    if site.bundle.card["runtime"].get("precision") != "fp32":
        return "the bundle is quantised or has no runtime model: adapt the one it came from, then quantise that"
    if method.fit is _head:
        each = min(np.unique(images.patients[images.y == kind]).size for kind in (True, False))
        return f"fewer than {INNER} patients of a class" if each < INNER else None
    if not has_batch_norm(site.bundle.network):
        return "the network has no batch norm"
    return f"fewer than {LEAST} images" if images.n < LEAST else None


def _seen_anew(network: Network, bundle: Bundle, images: Material) -> Floats:
    return head_logits(network, head_features(network, images.canvases, bundle.preparation))


def _with_points(site: Site, images: Material, change: Change, honest: Floats) -> Change:
    """Return the change with operating points chosen on probabilities [n] of the images that it was fitted to."""
    points = operating_points(images.y, honest, images.patients.tolist(), seed=site.seed, resamples=_THRESHOLD_DRAWS)
    known = {**site.bundle.card["operating_points"], **{name: point.as_json() for name, point in points.items()}}
    return Change(change.temperature, change.bias, change.network, change.head, known, change.note)
