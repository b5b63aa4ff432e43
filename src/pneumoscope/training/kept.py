"""Which epoch is kept: the highest validation AUROC, and among near-equals the lowest validation loss.

AUROC says nothing of probabilities, and on few images many epochs share its maximum: the first of them has often
learned next to nothing. A later phase replaces an earlier one unless it is clearly worse.
"""

from __future__ import annotations

from collections.abc import Sequence

Row = dict[str, float | int | str]

NEAR = 0.002  # of AUROC, within which the loss decides


def kept_row(rows: Sequence[Row]) -> Row:
    """Return the row of one phase whose weights are kept, decided epoch by epoch as training goes."""
    kept, highest = rows[0], float(rows[0]["val_auroc"])
    for row in rows[1:]:
        highest = max(highest, float(row["val_auroc"]))
        near = float(row["val_auroc"]) >= highest - NEAR
        outdone = float(kept["val_auroc"]) < highest - NEAR
        if near and (outdone or float(row["val_loss"]) < float(kept["val_loss"])):
            kept = row
    return kept


def best_row(history: Sequence[Row], *, comparable: bool = True) -> Row:
    """Return the row of all phases whose weights are kept: the last phase's, unless an earlier one was clearly better.

    `comparable`: False where the phases were not measured on the same images; the last one then counts.
    """
    winners = [kept_row([row for row in history if row["phase"] == phase]) for phase in phases(history)]
    best = winners[0]
    for row in winners[1:]:
        if not comparable or not clearly_worse(row, best):
            best = row
    return best


def clearly_worse(row: Row, than: Row) -> bool:
    """Say whether an epoch's AUROC lies below another's by more than a near tie."""
    return float(row["val_auroc"]) < float(than["val_auroc"]) - NEAR


def phases(history: Sequence[Row]) -> list[str]:
    """Return the names of the phases in order."""
    return list(dict.fromkeys(str(row["phase"]) for row in history))
