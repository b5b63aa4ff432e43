"""Are images that measure a bundle copies of those that it learned from? Then figures say nothing of new ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pneumoscope.bundle.bundle import Bundle
from pneumoscope.records import Progress, Sample

LIMIT = 0.01  # share of copies above which figures are void
TUNED = ("train", "adapted", "val")  # parts that weights, epoch, calibration or thresholds were fitted to
_NOT_KNOWN = "this bundle has no fingerprints of the images it learned from: whether these are among them is not known"


def overlap(
    bundle: Bundle, samples: Sequence[Sample], *, asked: bool = False, progress: Progress | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Count the images of which the bundle knows a copy; return the facts, and for each image the part or "".

    In the facts: `checked`, `images`, `parts` (copies by part), `by` (`content` or `look`), `share` of the bundle's
    images that it kept, and as sentences `void`, `warning`, `note`, each None where there is nothing to say.
    Figures are void where more than `LIMIT` of the images, scaled up by `share`, are of parts in `TUNED`.

    Args:
        bundle: whose fingerprints are searched.
        samples: the images to be measured.
        asked: that these are images of the bundle's own parts is known, as with `--split val`: warned of, not void.
        progress: called with (images done, images in all).

    Raises:
        BundleError: the fingerprints are missing or damaged.
    """
    known = bundle.fingerprints()
    if known is None:
        nothing = {"void": None, "warning": None, "note": _NOT_KNOWN}
        return {"checked": False, "images": len(samples), **nothing}, [""] * len(samples)
    found = known.matches([sample.path for sample in samples], progress=progress)
    parts = Counter(match.part for match in found if match)
    facts: dict[str, Any] = {
        "checked": True,
        "images": len(samples),
        "parts": {name: count for name, count in parts.items() if count},
        "by": dict(Counter(match.by for match in found if match)),
        "share": known.share,
        **_judged(parts, len(samples), known.share, asked),
    }
    return facts, [match.part if match else "" for match in found]


def _judged(parts: Counter[str], images: int, share: float, asked: bool) -> dict[str, str | None]:
    tuned = {name: parts[name] for name in TUNED if parts[name]}
    said: dict[str, str | None] = {"void": None, "warning": None, "note": None}
    if share < 1:  # of k copies none is found with probability (1 - share)^k
        said["note"] = (
            f"{share:.1%} of the images that it learned from are on record: "
            f"up to {3 / share:,.0f} copies may go unnoticed"
        )
    if tuned:
        count = sum(tuned.values())
        each = ", ".join(f"{number:,} {name}" for name, number in tuned.items())
        kept = "" if share == 1 else f", with {share:.0%} of its images on record"
        text = (
            f"{count:,} of {images:,} images are copies of images that the network was trained or tuned on "
            f"({each}{kept}): "
        )
        if count / share <= LIMIT * images:
            said["warning"] = text + "they flatter the figures a little"
        elif asked:
            said["warning"] = text + "these are no figures of a test"
        else:
            said["void"] = text + "no figure here says how it does on new patients"
    return said
