"""Partition SHAP: Owen values over a tree in which neighbouring segments go together.

The package shap has it too; it breaks ties by NumPy's global generator, so that its figures differ from call to
call, and asks the network about few images at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.ndimage import center_of_mass

from pneumoscope.explanation.method import DEFAULTS, INPUT, Options, finish
from pneumoscope.explanation.perturbation import BATCH, FILLS, Masks, answers, network_input
from pneumoscope.explanation.segments import Labels, cut
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import Floats, Heatmap

_SAMPLES = 300


@dataclass(frozen=True, slots=True)
class _Group:
    """A node of the tree, added to a context: bool [K]. `low`, `high`: the answers without and with the group."""

    node: int
    context: NDArray[np.bool_]
    weight: float
    low: float
    high: float


def shap_partition(classifier: Classifier, canvas: Pixels, options: Options = DEFAULTS) -> Heatmap:
    """Return partition SHAP: Owen values of the segments for the log-odds of pneumonia.

    They add up to the difference of the log-odds of the image and of the fill. The tree joins near segments
    (Ward's method on their centres); at most `options.samples` (300) answers split it from the top, those groups
    first that carry most, and where they are used up the members of a group share equally. Nothing is drawn at
    random. Source: Owen 1977; for images, the partition explainer of shap (Lundberg and Lee 2017, arXiv:1705.07874).

    Args:
        classifier: any network.
        canvas: uint8 [canvas, canvas].
        options: samples, segments, fill.
    """
    started = time.perf_counter()
    image = network_input(classifier, canvas)
    segments = cut(image, options.segments)
    fill, samples = FILLS[options.fill](image), options.samples or _SAMPLES

    def score(present: Masks) -> Floats:
        return answers(classifier, image, fill, segments, present)

    contributions, evaluations = owen(score, tree(segments), max(2, samples))
    return finish(
        contributions[segments].astype(np.float32), started, method="shap-partition", layer=INPUT,
        samples=samples, evaluations=evaluations, segments=segments, contributions=contributions,
    )  # fmt: skip


def tree(segments: Labels) -> NDArray[np.int64]:
    """Return which two nodes each inner node joins, int [K - 1, 2], from int32 [S, S] with labels 0..K-1.

    Node k < K is the segment k, node K + i the join of row i.
    """
    centres = center_of_mass(np.ones(segments.shape), segments, np.arange(int(segments.max()) + 1))
    return np.asarray(linkage(np.asarray(centres), "ward")[:, :2], np.int64)


def owen(score: Callable[[Masks], Floats], joins: NDArray[np.int64], most: int) -> tuple[Floats, int]:
    """Return the Owen values float64 [K] of a score of coalitions, and the number of coalitions evaluated.

    A group in a context is split in two, each half being added before and after the other, with half the weight.

    Args:
        score: float64 [n] from bool [n, K].
        joins: as `tree` gives them.
        most: coalitions evaluated; with K² or more the values of a balanced tree are exact.
    """
    count = len(joins) + 1
    members = list(np.eye(count, dtype=bool))
    for left, right in joins:
        members.append(members[left] | members[right])
    empty = np.zeros(count, bool)
    low, high = score(np.stack([empty, ~empty]))
    values, evaluations = np.zeros(count), 2
    waiting = [_Group(2 * count - 2, empty, 1.0, float(low), float(high))]
    while waiting:
        waiting.sort(key=lambda group: -abs(group.high - group.low) * group.weight)
        now, waiting = waiting[: BATCH // 2], waiting[BATCH // 2 :]
        divided = [group for group in now if group.node >= count][: (most - evaluations) // 2]
        split = {id(group) for group in divided}
        for group in now:
            if id(group) not in split:
                inside = members[group.node]
                values[inside] += group.weight * (group.high - group.low) / inside.sum()
        if divided:
            waiting += _halves(score, joins, members, divided)
            evaluations += 2 * len(divided)
    return values, evaluations


def _halves(
    score: Callable[[Masks], Floats],
    joins: NDArray[np.int64],
    members: list[NDArray[np.bool_]],
    divided: list[_Group],
) -> list[_Group]:
    count = len(joins) + 1
    pairs = [joins[group.node - count] for group in divided]
    with_one = np.stack([g.context | members[node] for g, pair in zip(divided, pairs, strict=True) for node in pair])
    halves = []
    for group, (left, right), (first, second) in zip(divided, pairs, score(with_one).reshape(-1, 2), strict=True):
        for node, other, alone, before in ((left, right, first, second), (right, left, second, first)):
            weight = group.weight / 2
            halves.append(_Group(int(node), group.context, weight, group.low, float(alone)))
            halves.append(_Group(int(node), group.context | members[other], weight, float(before), group.high))
    return halves
