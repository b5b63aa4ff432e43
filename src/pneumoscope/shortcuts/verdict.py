"""When an item of the card is green, amber or red: every limit, with its reason, and the rules that use them.

A light follows from the whole 95 % interval: green where it lies on the good side of the limit, red where it lies on
the bad side, amber where it straddles or is not known. So few images give amber, not a clean bill.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pneumoscope.records import Estimate

GREEN, AMBER, RED, NOT_TESTED = "green", "amber", "red", "not tested"
LIGHTS = (GREEN, AMBER, RED, NOT_TESTED)

# Share of (AUROC - .5) that may be left without the lungs. More, and most of the evidence comes from elsewhere.
MOST_KEPT = 0.50
# Share of (AUROC - .5) that should be left with the lungs alone. It is never red: such images are too strange.
LEAST_ALONE = 0.50
# AUROC that may be lost when borders, corners or letters are hidden, added, or put on one class alone. The literature
# calls a fall of .03 within strata a sign of a shortcut; so small a fall is the cost of the change itself.
MOST_LOST = 0.03
# Share of the distance between the classes' mean log-odds that a hidden part may take before a loss of AUROC is red.
# A network unsure of many images ranks worse whatever is hidden, but an irrelevant part takes from both classes alike.
MOST_TAKEN = 0.25
# Share of the calls that an R, a border, a mirror image or another exposure may turn round: none of them is a finding.
# More is never red, for a network that is unsure of many images changes its calls whatever is changed.
MOST_TURNED = 0.05
# Never red, for a network that never met them may be moved without having learnt to read them: a black border moved
# networks taught by pairs that differ in the lungs alone by as much as the disease did. Exposure is met by all.
FOREIGN = frozenset({"letter_pasted", "border_added", "mirrored"})
# Share of a map's energy in the lungs: the aim, and the least that a map needs to be about the lungs.
INSIDE_AIM, INSIDE_LEAST = 0.60, 0.50
# AUROC from which on a property that is no finding is a shortcut on offer, as in `data check`.
MOST_ALONG = 0.60
# AUROC of a probe above which embeddings count as encoding an attribute, unless the grey levels predict it as well.
MOST_KNOWN = 0.70

MIN_PATIENTS = 10  # of each class, for an AUROC
MIN_MAPS = 20  # images called pneumonia, for a mean over maps


def at_most(estimate: Estimate, limit: float) -> str:
    """Return the light of a figure that should not exceed a limit."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return AMBER
    return GREEN if estimate.high <= limit else RED if estimate.low > limit else AMBER


def at_least(estimate: Estimate, aim: float, least: float) -> str:
    """Return the light of a mean: green from `aim` on, red under `least`, both by the value, amber between them."""
    return GREEN if estimate.value >= aim else AMBER if estimate.value >= least else RED


def never_red(light: str) -> str:
    """Return the light, red as amber: for what is on offer, or strange, and not proved to be used."""
    return AMBER if light == RED else light


def hotspot(follows: Estimate, inside: float) -> str:
    """Return the light of maps that may always lie at the same position.

    `follows`: share of energy in the own lungs less that in others'; `inside`: share of the mean map's strongest
    places where most images have lung. Red where maps do not go with the lungs and lie outside them.
    """
    goes, within = follows.low > 0, inside >= 0.5
    return GREEN if goes and within else RED if not goes and not within else AMBER


def worst(lights: Iterable[str]) -> str:
    """Return the worst of the lights that were tested, or that none was."""
    tested = [light for light in lights if light != NOT_TESTED]
    return max(tested, key=LIGHTS.index) if tested else NOT_TESTED
