"""What other networks say of the training images: predictions made before, or networks that see the same image now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch import Tensor

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.errors import DataError, storage_errors
from pneumoscope.images.preparation import Preparation

PREDICTIONS = ".csv"
_SURE = 1e-4  # no teacher is surer than this: one wrong certainty would outweigh all others


def soft_targets(
    paths: Sequence[str], allowed: NDArray[np.bool_], teachers: Sequence[str], share: float
) -> NDArray[np.float32]:
    """Return targets float32 [n, C]: the label, and with weight `share` the mean opinion of the teachers.

    The mean is that of the log-odds, over all files and rows of an image. Where the label leaves the subtype open,
    its pneumonia is divided as the teachers do. An image without teachers keeps its label alone.

    Args:
        paths: of the images, as in the `path` column of the files.
        allowed: classes that the labels allow, bool [n, C], class 0 normal; C is 2 or 3 (normal, bacterial, viral).
        teachers: `predictions.csv` files of `evaluate`; for three classes with their `viral` column.
        share: weight of the teachers, 0..1.

    Raises:
        DataError: a file has no such columns, or none of the images.
    """
    table = pd.concat([_opinions(Path(name), allowed.shape[1]) for name in teachers])
    opinions = table.groupby("path").mean().reindex(list(paths))
    judged = opinions["odds"].notna().to_numpy()
    if not judged.any():
        raise DataError(
            "says nothing about the images to train on", path=teachers[0], remedy="predict these images, same paths"
        )
    pneumonia = expit(opinions["odds"].to_numpy())
    parts = [1 - pneumonia, pneumonia]
    if allowed.shape[1] == 3:
        viral = expit(opinions["viral_odds"].to_numpy())
        parts = [1 - pneumonia, pneumonia * (1 - viral), pneumonia * viral]
    opinion = np.stack(parts, axis=1)
    within = np.where(allowed, opinion, 0.0)  # the label, its open subtype as the teachers see it
    label = within / within.sum(axis=1, keepdims=True)
    result = np.where(judged[:, None], (1 - share) * label + share * opinion, allowed)
    return np.asarray(result, dtype=np.float32)


def _opinions(path: Path, classes: int) -> pd.DataFrame:
    with storage_errors(path):
        try:
            table = pd.read_csv(path)
        except (ValueError, pd.errors.ParserError) as error:
            raise DataError(f"is not a CSV table ({error})", path=path, remedy="give a predictions.csv") from error
    wanted = ["path", "probability"] + (["viral"] if classes == 3 else [])
    missing = [name for name in wanted if name not in table]
    if missing or (classes == 3 and table["viral"].isna().all()):
        raise DataError(
            f"has no {' and no '.join(missing) or 'viral'} column to teach {classes} classes",
            path=path,
            remedy="give the predictions.csv of a network with as many classes",
        )
    table = table.dropna(subset=wanted)
    opinions = {"path": table["path"], "odds": _odds(table["probability"])}
    if classes == 3:
        opinions["viral_odds"] = _odds(table["viral"])
    return pd.DataFrame(opinions)


def _odds(probability: pd.Series[float]) -> NDArray[np.float64]:
    return np.asarray(logit(np.clip(probability.to_numpy(float), _SURE, 1 - _SURE)))


class Ensemble:
    """Bundles whose networks judge each augmented image as the student sees it (Beyer et al. 2022, arXiv:2106.05237).

    `preparation`: the student's. No module of PyTorch, so that neither checkpoints nor averages hold its weights.

    Raises:
        BundleError: one cannot be read.
        DataError: one has other classes than the student.
    """

    def __init__(self, names: Sequence[str], classes: int, preparation: Preparation) -> None:
        self.preparation = preparation
        self.members = [load_bundle(Path(name)) for name in names]
        self.networks = [bundle.network for bundle in self.members]
        for bundle in self.members:
            if len(bundle.card["network"]["classes"]) != classes:
                raise DataError(
                    f"does not teach {classes} classes", path=bundle.folder, remedy="train it with as many classes"
                )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the softmax of the mean of the members' logits, float32 [B, C], about the student's input."""
        grey = images * _column(self.preparation.std, images) + _column(self.preparation.mean, images)
        logits = torch.zeros((), device=images.device)
        for bundle, network in zip(self.members, self.networks, strict=True):
            prepare = bundle.preparation
            x = grey
            if prepare.size != images.shape[-1]:
                x = F.interpolate(grey, (prepare.size, prepare.size), mode="bilinear", antialias=True)
            x = (x - _column(prepare.mean, x)) / _column(prepare.std, x)
            logits = logits + network.to(images.device)(x.contiguous(memory_format=torch.channels_last)).float()
        return (logits / len(self.networks)).softmax(dim=1)


def shared_target(allowed: Tensor, opinion: Tensor, share: float) -> Tensor:
    """Return targets [B, C]: the label, and with weight `share` the opinion, a distribution [B, C].

    `allowed`: bool, or rows as `set_loss` takes them. A label that leaves the subtype open divides its pneumonia as
    the opinion does.
    """
    several = allowed.sum(dim=1, keepdim=True) > 1.5
    label = torch.where(several, allowed * opinion.clamp_min(_SURE), allowed.to(opinion.dtype))
    return (1 - share) * label / label.sum(dim=1, keepdim=True) + share * opinion


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, 3, 1, 1)
