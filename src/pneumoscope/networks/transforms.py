"""Pixels as tensors: `prepare` always, `draw` and apply an augmentation in training only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from pneumoscope.config import AugmentConfig
from pneumoscope.images.preparation import Preparation, to_input


def prepare(canvases: Tensor, preparation: Preparation) -> Tensor:
    """Return float32 [B, 3, size, size], normalised, from uint8 [B, canvas, canvas]."""
    pixels = torch.from_numpy(to_input(canvases.cpu().numpy(), preparation))
    return normalise(pixels[:, None].to(canvases.device), preparation)


def normalise(images: Tensor, preparation: Preparation) -> Tensor:
    """Return float32 [B, 3, S, S] from uint8 [B, 1, S, S]: grey to three channels, mean and std of the weights."""
    mean, std = (torch.tensor(values, device=images.device) for values in (preparation.mean, preparation.std))
    # Channels last: twice as fast on CPUs for depthwise convolutions.
    return standardise(images, mean, std).contiguous(memory_format=torch.channels_last)


def standardise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return float32 [B, 3, S, S] from uint8 [B, 1, S, S] and the mean and std [3] of values in 0..1."""
    return (images.float() / 255.0 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One drawn set of changes; `apply` is then a pure function of the image.

    `crop`: top, left, height, width in fractions of the side; `angle` in degrees; `shift` in fractions;
    `brightness` is added (0..1 scale), `contrast`, `gamma` and `zoom` multiply;
    `blur`: standard deviation in fractions of the output; `noise`: that of grey (0..1 scale);
    `box`: erased rectangle in fractions of the output, and its grey; `frame`: margins painted over (top,
    bottom, left, right) in the same fractions, and their grey.
    """

    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    angle: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 1.0
    gamma: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0
    box: tuple[float, float, float, float] | None = None
    box_grey: float = 0.0
    frame: tuple[float, float, float, float] | None = None
    frame_grey: float = 0.0

    def apply(self, canvas: Tensor, size: int) -> Tensor:
        """Return uint8 [1, size, size] from uint8 [1, canvas, canvas]."""
        image = self.warp(canvas, size)
        sigma = self.blur * size
        if sigma > 0.1:  # a tenth of a pixel changes nothing
            image = tv.gaussian_blur(image, [2 * math.ceil(2.5 * sigma) + 1] * 2, [sigma, sigma])
        return self._intensities(image)

    def warp(self, canvas: Tensor, size: int) -> Tensor:
        """Return uint8 [1, size, size] from uint8 [1, canvas, canvas]: where things lie changes, greys do not.

        So the mask of an image goes where the image goes.
        """
        image = canvas
        side = image.shape[-1]
        if self.angle or self.shift != (0.0, 0.0) or self.zoom != 1.0:
            pixels = [round(fraction * side) for fraction in self.shift]
            image = tv.affine(
                image, self.angle, pixels, self.zoom, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR
            )
        top, left, height, width = (fraction * side for fraction in self.crop)
        box = [round(top), round(left), max(1, round(height)), max(1, round(width))]
        if box != [0, 0, side, side] or side != size:
            image = tv.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR, antialias=True)
        if self.flip:
            image = tv.horizontal_flip(image)
        return image

    def _intensities(self, image: Tensor) -> Tensor:
        changes = (self.brightness, self.contrast, self.gamma, self.noise, self.box, self.frame)
        if changes == (0.0, 1.0, 1.0, 0.0, None, None):
            return image
        values = image.float() / 255.0
        if self.gamma != 1.0:
            values = values**self.gamma
        if self.contrast != 1.0:
            centre = values.mean()
            values = (values - centre) * self.contrast + centre
        values = values + self.brightness
        if self.noise:
            generator = torch.Generator().manual_seed(self.noise_seed)
            values = values + self.noise * torch.randn(values.shape, generator=generator)
        if self.box is not None:
            size = values.shape[-1]
            top, left, height, width = (round(fraction * size) for fraction in self.box)
            values[..., top : top + height, left : left + width] = self.box_grey
        if self.frame is not None:
            size = values.shape[-1]
            top, bottom, left, right = (round(fraction * size) for fraction in self.frame)
            inside = values[..., top : size - bottom, left : size - right]
            values = torch.full_like(values, self.frame_grey)
            values[..., top : size - bottom, left : size - right] = inside
        return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def draw(config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
    """Draw one augmentation; the same generator state gives the same one."""
    box = None
    if rng.random() < config.erase:
        height, width = rng.uniform(0.05, 0.35, 2)
        box = (rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width)
    drawn = Augmentation(
        crop=_draw_crop(config, rng),
        angle=rng.uniform(-config.rotation, config.rotation),
        shift=(rng.uniform(-config.shift, config.shift), rng.uniform(-config.shift, config.shift)),
        zoom=math.exp(rng.uniform(-1, 1) * math.log1p(config.zoom)),
        flip=bool(rng.random() < config.flip),
        brightness=rng.uniform(-config.brightness, config.brightness),
        contrast=math.exp(rng.uniform(-1, 1) * math.log1p(config.contrast)),
        gamma=math.exp(rng.uniform(-1, 1) * math.log1p(config.gamma)),
        noise=rng.uniform(0, config.noise),
        noise_seed=int(rng.integers(2**31)),
        box=box,
        box_grey=float(rng.random()),
        blur=rng.uniform(0, config.blur) if rng.random() < 0.5 else 0.0,
    )
    # Last, so that the other draws stay what they were before there was a frame.
    if config.frame and rng.random() < config.frame:
        top, bottom, left, right = rng.uniform(0, 0.125, 4)
        grey = rng.random() if rng.random() < 0.5 else 0.0
        drawn = replace(drawn, frame=(top, bottom, left, right), frame_grey=grey)
    return drawn


def _draw_crop(config: AugmentConfig, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Draw area and aspect ratio as torchvision's RandomResizedCrop does: ten tries, else the whole image."""
    if config.crop_scale == (1.0, 1.0):
        return (0.0, 0.0, 1.0, 1.0)
    low, high = (math.log(ratio) for ratio in config.crop_ratio)
    for _ in range(10):
        area = rng.uniform(*config.crop_scale)
        ratio = math.exp(rng.uniform(low, high))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= 1 and height <= 1:
            return (rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width)
    return (0.0, 0.0, 1.0, 1.0)
