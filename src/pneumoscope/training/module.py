"""One optimisation step: loss, optimiser, schedule, and the validation figures that choose the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

from pneumoscope.config import TrainConfig
from pneumoscope.errors import ConfigError, TrainingError
from pneumoscope.networks.network import Network, pneumonia_score
from pneumoscope.training.teachers import shared_target

_LEAST_LUNG = 0.03  # share of what the network sees


def set_loss(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Return float32 [B]: the cross-entropy to the target, or minus the log of the probability of the allowed classes.

    `logits` float32 [B, C]. A row of `target` [B, C] is a distribution over the classes, or holds a one for each of
    several allowed classes (subtype unknown), whose sum then counts. Label smoothing after Szegedy et al. 2016
    (arXiv:1512.00567).
    """
    log_p = logits.float().log_softmax(dim=1)
    target = target.float()
    several = (target.sum(dim=1) > 1.5)[:, None]  # a distribution sums to one, two allowed classes to two
    # Rows of the other kind keep all their classes here, so that no infinity reaches their gradient.
    allowed = -log_p.masked_fill(several & (target < 0.5), -math.inf).logsumexp(dim=1)
    hit = torch.where(several[:, 0], allowed, -(target * log_p).sum(dim=1))
    if smoothing == 0.0:
        return hit
    return (1 - smoothing) * hit - smoothing * log_p.mean(dim=1)


def evidence_map(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [B, C] and the map of evidence for pneumonia, [B, h, w], from images [B, 3, S, S].

    The evidence is the map of Grad-CAM before its negative part is cut off: the gradient of the log-odds of pneumonia
    with respect to the last map, times that map. Here it is exact, the answer being linear in the map's mean.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(network, Network):
        raise _not_linear()
    last = network.encoder(x)
    pooled = network.encoder.model.forward_head(last, pre_logits=True)
    *before, linear = network.head
    if not isinstance(linear, nn.Linear) or not all(isinstance(layer, nn.Dropout) for layer in before):
        raise _not_linear()
    if last.ndim != 4 or last.shape[:2] != pooled.shape:
        raise _not_linear()
    if not torch.allclose(last.detach().float().mean(dim=(2, 3)), pooled.detach().float(), rtol=0.02, atol=0.02):
        raise _not_linear()
    logits: Tensor = network.head(pooled)
    slope = torch.cat([-torch.ones_like(logits[:, :1]), logits[:, 1:].softmax(dim=1)], dim=1)
    return logits, torch.einsum("bf,bfhw->bhw", slope @ linear.weight, last)


def _not_linear() -> ConfigError:
    return ConfigError(
        "train.attention needs a network whose answer is linear in the mean of its last map",
        remedy="choose custom-cnn, a ResNet, VGG or EfficientNet, and leave train.mixup out, or leave attention out",
    )


def outside(evidence: Tensor, lungs: Tensor) -> Tensor:
    """Return the share of the evidence [B, h, w], whatever its sign, outside the lungs, float32 [B] in 0..1.

    `lungs`: uint8 [B, 1, S, S], 0..255. The map is enlarged as explanations enlarge it. An image that shows next to no
    lung asks for nothing: its share is 0.
    """
    side = max(lungs.shape[-1] // 4, evidence.shape[-1])  # fine enough for an outline, and quick
    lung = F.adaptive_avg_pool2d(lungs.float() / 255, side)[:, 0]
    strength = F.interpolate(evidence.float().abs()[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
    share = (strength * (1 - lung)).sum(dim=(1, 2)) / strength.sum(dim=(1, 2)).clamp_min(1e-6)
    return torch.where(lung.mean(dim=(1, 2)) > _LEAST_LUNG, share, 0.0)


class Classifier(L.LightningModule):
    """Trains `network` (a whole network on images, or a head on features).

    Args:
        network: logits [B, C] from a batch.
        groups: optimiser groups, each `{"params", "lr", "weight_decay"}`.
        config: the training section of the experiment.
        epochs: length of the schedule.
        seed: of dropout and mixup; they depend on (seed, epoch, step) alone, so that a resume repeats them.
        still: modules that stay in eval mode.
        teachers: judge each batch as it is; their opinion has `train.teacher_share` of the target.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: list[dict[str, Any]],
        config: TrainConfig,
        *,
        epochs: int,
        seed: int,
        still: Sequence[nn.Module] = (),
        teachers: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.teachers = network, teachers
        self.groups, self.config, self.epochs, self.seed = groups, config, epochs, seed
        self.still = list(still)
        # Metrics, not logged numbers: those are averaged wrongly where ranks hold different counts of images.
        self.loss, self.auroc, self.accuracy = MeanMetric(), BinaryAUROC(), BinaryAccuracy()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C]."""
        logits: Tensor = self.network(x)
        return logits

    def on_train_epoch_start(self) -> None:
        """Put modules back into eval mode that validation, or the start, has left in training mode."""
        for module in self.still:
            module.eval()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make the step independent of what ran before it: loaders draw from the same generator."""
        key = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Return the weighted loss; raises `TrainingError` where it is not finite."""
        x, allowed, weights, *lungs = batch
        if self.teachers is not None:
            allowed = shared_target(allowed, self.teachers(x), self.config.teacher_share)
        if self.config.mixup:
            loss = self._mixup(x, allowed, weights)
        elif self.config.attention and lungs:
            logits, evidence = evidence_map(self.network, x)
            loss = (set_loss(logits, allowed, self.config.label_smoothing) * weights).mean()
            loss = loss + self.config.attention * outside(evidence, lungs[0]).mean()
        else:
            loss = (set_loss(self(x), allowed, self.config.label_smoothing) * weights).mean()
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}, step {batch_idx}"
                + ("" if torch.isfinite(x).all() else ", because the input holds values that are not finite"),
                remedy="lower train.rate or train.head_rate, or set train.clip",
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(x))
        return loss

    def _mixup(self, x: Tensor, allowed: Tensor, weights: Tensor) -> Tensor:
        """Zhang et al. 2018 (arXiv:1710.09412): one mixing ratio per batch."""
        ratio = torch.distributions.Beta(self.config.mixup, self.config.mixup).sample().item()
        other = torch.randperm(len(x), device=x.device)
        logits = self(ratio * x + (1 - ratio) * x[other])
        smoothing = self.config.label_smoothing
        own = set_loss(logits, allowed, smoothing) * weights
        borrowed = set_loss(logits, allowed[other], smoothing) * weights[other]
        return (ratio * own + (1 - ratio) * borrowed).mean()

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Collect loss, AUROC and accuracy at one half, weighted so that neither class dominates the loss."""
        x, allowed, weights = batch
        logits = self(x)
        score, truth = pneumonia_score(logits), (allowed[:, 0] < 0.5).int()
        self.auroc.update(score.sigmoid(), truth)
        self.accuracy.update(score.sigmoid(), truth)
        self.loss.update(set_loss(logits, allowed, 0.0) * weights)
        self.log("val_loss", self.loss, on_epoch=True, on_step=False, prog_bar=True)
        self.log("val_auroc", self.auroc, on_epoch=True, on_step=False, prog_bar=True)
        self.log("val_accuracy", self.accuracy, on_epoch=True, on_step=False, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW (Loshchilov and Hutter 2019) with linear warm-up, then cosine decay to a hundredth."""
        optimizer = torch.optim.AdamW(self.groups)
        steps = (
            max(1, int(self.trainer.estimated_stepping_batches) // max(1, self.trainer.max_epochs or 1)) * self.epochs
        )
        warm = max(1, round(self.config.warmup * steps))

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }
