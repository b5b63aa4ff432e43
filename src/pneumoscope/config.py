"""An experiment in one TOML file; an unknown key or a wrong type is an error that names the file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pneumoscope.errors import ConfigError, storage_errors
from pneumoscope.files import write_text

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Read = TypeVar("Read", bound=BaseModel)


class Section(BaseModel):
    """A table of a TOML file: an unknown key, a wrong type or a number out of range is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """How the source is divided; every division keeps a patient whole.

    `split = "grouped"` rejoins all that is not marked test and divides anew; `"source"` takes the
    source's own train and val. Images marked test are never trained on. `seed`: of the division; the
    experiment's where it is missing, but then another seed trains on other patients too.
    """

    split: Literal["grouped", "source"] = "grouped"
    seed: Annotated[int, Field(ge=0)] | None = None
    val_fraction: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.1
    test_fraction: Fraction = 0.0
    folds: Annotated[int, Field(ge=2, le=50)] | None = None
    fold: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist, folds are 0 to {self.folds - 1}")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction leave nothing to train on")
        return self


class PrepareConfig(Section):
    """What every image goes through, in training and in use.

    `canvas` pixels are cached; `size` pixels go into the network. `mean` and `std` default to those of
    the network's weights. `mirror`, in use only: the answer is the mean of those about the image and its mirror
    image, which takes twice the time. `tone = "equalise"`: every image gets an even histogram, after augmentation.
    `crop = "lungs"`: what lies far from the lungs is cut away first; where none are found nothing is.
    """

    size: Annotated[int, Field(ge=16, le=1024)] = 224
    canvas: Annotated[int, Field(ge=16, le=2048)] | None = None
    aspect: Literal["squash", "pad"] = "squash"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    mirror: bool = False
    tone: Literal["as-is", "equalise"] = "as-is"
    crop: Literal["none", "lungs"] = "none"

    @model_validator(mode="after")
    def _fits(self) -> PrepareConfig:
        if self.canvas is not None and self.canvas < self.size:
            raise ValueError(f"canvas ({self.canvas}) must not be smaller than size ({self.size})")
        return self

    @property
    def canvas_size(self) -> int:
        """Side of the cached square in pixels."""
        return self.canvas or self.size


class AugmentConfig(Section):
    """Random changes in training only; 0 switches one off. Angles in degrees, shifts in fractions of the side.

    `frame`: how often up to an eighth of each side is painted over, where markers, borders and labels are.
    `surroundings`: how often all but the lungs is that of another training image, of whatever class, so that
    nothing outside the lungs goes with the label.
    `transplant`: how often the lungs are those of another training image, of either class alike, and so is the label;
    so that neither the outline of the lungs nor what lies around them goes with it.
    `blank`: how often the lungs are painted over; the label is then none, both classes alike.
    `lungs`: how often the crop is the box of the lungs, each edge moved by up to a quarter inward or 8 % outward.
    `framing`: how often the crop is that in which the lungs lie as those of another training image do.
    `style`: how often the radial power spectrum is moved, by 30 to 100 %, to that of a training image of the other
    class, and how often the greys are; so that neither the machine nor the exposure goes with the label.
    """

    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (1.0, 1.0)
    crop_ratio: tuple[Positive, Positive] = (1.0, 1.0)
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.0
    blur: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0
    frame: Annotated[float, Field(ge=0, le=1)] = 0.0
    surroundings: Annotated[float, Field(ge=0, le=1)] = 0.0
    transplant: Annotated[float, Field(ge=0, le=1)] = 0.0
    blank: Annotated[float, Field(ge=0, le=1)] = 0.0
    lungs: Annotated[float, Field(ge=0, le=1)] = 0.0
    framing: Annotated[float, Field(ge=0, le=1)] = 0.0
    style: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> AugmentConfig:
        if self.lungs + self.framing > 1:
            raise ValueError("lungs and framing exclude each other in one image: together they may be 1 at most")
        if self.transplant + self.blank > 1:
            raise ValueError("transplant and blank exclude each other in one image: together they may be 1 at most")
        return self

    @property
    def needs_lungs(self) -> bool:
        """True where the lungs of the training images must be known."""
        return bool(self.surroundings or self.transplant or self.blank or self.lungs or self.framing)

    @property
    def off(self) -> bool:
        """True where no augmentation is left, so that features may be computed once."""
        return self == AugmentConfig()


class ModelConfig(Section):
    """The network, its weights, and how much of it learns.

    `network`: `custom-cnn`, `resnet20_mlnet` or any timm name. `weights`: `none`, `offline` (package on this machine),
    `hub` (timm's hub), or the path of a .safetensors or .pth file (relative to the experiment file).
    `strategy`: `scratch`, `frozen` (fixed feature extractor), or `finetune` (head first, then the last
    `unfreeze` stages, or all where 0).
    """

    network: Annotated[str, Field(min_length=1)] = "custom-cnn"
    weights: Annotated[str, Field(min_length=1)] = "none"
    strategy: Literal["scratch", "frozen", "finetune"] = "scratch"
    unfreeze: Annotated[int, Field(ge=0)] = 0
    freeze_batchnorm: bool = False
    dropout: Fraction = 0.2
    drop_path: Fraction = 0.0

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.strategy != "scratch" and self.weights == "none":
            raise ValueError(f'strategy = "{self.strategy}" needs weights, not "none"')
        return self


class TrainConfig(Section):
    """Optimisation. Rates are for AdamW; `layer_decay` multiplies the rate from each stage to the one before it.

    `ema = 0` switches the exponential moving average off; the average warms up over the first steps.
    `patience = 0` switches early stopping off. `sizes`: input sides of equal shares of the epochs, ascending,
    for training that begins small and ends at `prepare.size` (Tan and Le 2021, arXiv:2104.00298).

    `teachers`: other networks, relative to the experiment file: bundles, which judge each augmented image as the
    student sees it, or `predictions.csv` files about the training images, made by `evaluate`. When the whole network
    learns, their mean has `teacher_share` of the target, the label the rest (distillation, Hinton et al. 2015,
    arXiv:1503.02531). Let files be of networks that did not train on the images they judge, or they teach labels
    learned by heart.

    `refit_epochs`: after fine-tuning the head alone learns again, on the features of the images as they are (after
    Kirichenko et al. 2023, arXiv:2204.02937): what augmentation taught the encoder stays, answers suit whole images.

    `attention`: weight in the loss of the share of the network's evidence, for or against pneumonia, that lies outside
    the lungs (after Ross et al. 2017, arXiv:1703.03717). It needs a network whose answer is linear in the mean of
    its last map.
    """

    classes: Literal[2, 3] = 2
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    head_epochs: Annotated[int, Field(ge=1, le=10_000)] = 40
    refit_epochs: Annotated[int, Field(ge=0, le=10_000)] = 0
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    rate: Positive = 1e-3
    head_rate: Positive = 3e-3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    warmup: Fraction = 0.05
    imbalance: Literal["none", "weights", "sampler"] = "weights"
    label_smoothing: Fraction = 0.0
    mixup: Annotated[float, Field(ge=0, le=5)] = 0.0
    ema: Fraction = 0.0
    clip: Annotated[float, Field(ge=0)] = 1.0
    patience: Annotated[int, Field(ge=0)] = 0
    sizes: tuple[Annotated[int, Field(ge=16, le=1024)], ...] = ()
    teachers: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    teacher_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    attention: Annotated[float, Field(ge=0)] = 0.0
    stress: Annotated[int, Field(ge=0, le=20)] = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    workers: Annotated[int, Field(ge=0, le=128)] = 0


class Experiment(Section):
    """One training experiment."""

    title: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    @property
    def lungs(self) -> bool:
        """True where training needs to know where the lungs are."""
        return self.augment.needs_lungs or self.train.attention > 0 or self.train.stress > 0

    @property
    def all_epochs(self) -> int:
        """Epochs of all phases, where none is stopped early."""
        train = self.train
        of_phases = {"scratch": (train.epochs,), "frozen": (train.head_epochs,)}
        return sum(of_phases.get(self.model.strategy, (train.head_epochs, train.epochs, train.refit_epochs)))

    @property
    def division_seed(self) -> int:
        """Seed of the division of patients."""
        return self.seed if self.data.seed is None else self.data.seed

    @model_validator(mode="after")
    def _fits(self) -> Experiment:
        sizes = self.train.sizes
        if sizes and self.model.strategy == "frozen":
            raise ValueError("train.sizes is for networks that learn from images, not for frozen ones")
        if sizes and (sizes[-1] != self.prepare.size or list(sizes) != sorted(sizes)):
            raise ValueError(f"train.sizes must ascend to prepare.size ({self.prepare.size})")
        if self.train.teachers and self.model.strategy == "frozen":
            raise ValueError("train.teachers are for networks that learn from images, not for frozen ones")
        if self.train.refit_epochs and self.model.strategy != "finetune":
            raise ValueError('train.refit_epochs is for model.strategy = "finetune"')
        if self.train.attention and self.model.strategy == "frozen":
            raise ValueError("train.attention is for networks that learn from images, not for frozen ones")
        if self.train.attention and self.train.mixup:
            raise ValueError("train.attention and train.mixup exclude each other: mixed images have two pairs of lungs")
        if len(sizes) > self.train.epochs:
            raise ValueError(f"train.sizes has {len(sizes)} steps for {self.train.epochs} epochs")
        return self


def config_files() -> dict[str, Path]:
    """Return the experiment files that the package brings, by name."""
    packed = Path(__file__).parent / "configs"
    folder = packed if packed.is_dir() else Path(__file__).parents[2] / "configs"  # of a checkout
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_experiment(path: Path, changes: Sequence[str] = ()) -> Experiment:
    """Read an experiment: a file, or the name of one that the package brings.

    The weights and teachers of a file are relative to it, those of a name to a folder `configs` here.

    Args:
        path: the file, or the name.
        changes: `train.epochs=3`, values as TOML writes them; text needs no quotes.

    Raises:
        ConfigError: there is no such file or name, or a key is unknown, ill-typed or out of range.
    """
    named = config_files()
    if path.exists() or path.suffix or len(path.parts) > 1:
        file, folder = path, path.parent
    elif path.name in named:
        file, folder = named[path.name], Path.cwd() / "configs"
    else:
        raise ConfigError(
            f"no experiment is called {path.name!r}{_perhaps(path.name, named)}",
            remedy=f"give a file, or one of {', '.join(named)}",
        )
    return resolve_files(read_toml(file, Experiment, "docs/reference/experiment.md", changes), folder)


def read_toml(path: Path, model: type[Read], page: str, changes: Sequence[str] = ()) -> Read:
    """Read a TOML file as a model.

    Args:
        path: the file.
        model: what its tables and keys must be.
        page: of the documentation, which an error names as the remedy.
        changes: as `load_experiment` takes them.

    Raises:
        ConfigError: the file is no TOML, or a key is unknown, ill-typed or out of range.
    """
    with storage_errors(path):
        text = path.read_bytes()
    try:
        raw = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not valid TOML ({error})", path=path, remedy="mend the line") from error
    try:
        return model.model_validate(_tuples(_changed(raw, changes)))
    except ValidationError as error:
        raise ConfigError(_explain(error, model), path=path, remedy=f"see {page}") from error


def _changed(raw: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    for change in changes:
        key, sign, text = change.partition("=")
        *tables, name = key.strip().split(".")
        if not sign or not name:
            raise ConfigError(f"{change!r} changes nothing", remedy="write it as train.epochs=3")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        at = raw
        for table in tables:
            at = at.setdefault(table, {})
            if not isinstance(at, dict):
                raise ConfigError(f"{table} of {change!r} is no table", remedy="write it as train.epochs=3")
        at[name] = value
    return raw


def save_experiment(experiment: Experiment, path: Path) -> None:
    """Write an experiment with every value spelled out, as TOML."""
    write_text(path, tomli_w.dumps(experiment.model_dump(mode="json", exclude_none=True)))


def _tuples(value: object) -> object:
    """TOML arrays become tuples, which strict validation wants, and whole numbers stay what they are."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _perhaps(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def _known_keys(model: type[BaseModel], steps: Sequence[object]) -> list[str]:
    """Return the keys of the table in which an unknown one lies."""
    for step in steps:
        field = model.model_fields.get(str(step))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    parts = []
    for item in error.errors():
        key = ".".join(str(step) for step in item["loc"]) or "the file"
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown key {key}{_perhaps(str(item['loc'][-1]), _known_keys(model, item['loc'][:-1]))}")
        else:
            parts.append(f"{key} = {item['input']!r}: {item['msg']}" if item["loc"] else item["msg"])
    return ", ".join(parts)


def resolve_files(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with its files, named relative to `folder`, found from anywhere."""
    model, train = experiment.model, experiment.train
    if model.weights not in ("none", "offline", "hub"):
        model = model.model_copy(update={"weights": str((folder / model.weights).resolve())})
    train = train.model_copy(update={"teachers": tuple(str((folder / name).resolve()) for name in train.teachers)})
    return experiment.model_copy(update={"model": model, "train": train})
