"""One phase of training with Lightning: interruptible anywhere, resumable from the last whole epoch."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader, Dataset

from pneumoscope.config import TrainConfig
from pneumoscope.errors import ConfigError, TrainingError, storage_errors
from pneumoscope.files import read_json, write_bytes, write_json
from pneumoscope.training.allocator import keep_freed_memory
from pneumoscope.training.dataset import EpochSampler
from pneumoscope.training.kept import Row, kept_row
from pneumoscope.training.module import Classifier

_MONITOR = "val_auroc"
_KEPT = "kept"  # the number of the epoch where it is the one to keep, else 0
Report = Callable[[Row], None]


@dataclass(frozen=True)
class Hardware:
    """Where to train: `devices` processes on each of `nodes` machines; `accelerator` as Lightning names it.

    Several machines need a launcher, torchrun, that starts every process. Each then has its `rank`; the one of
    rank 0 prepares, writes and evaluates, the others only share its work while it trains on images.
    """

    devices: int = 1
    nodes: int = 1
    accelerator: str = "auto"
    rank: int = 0

    @classmethod
    def here(cls, devices: int, nodes: int) -> Hardware:
        """Return the hardware as seen from this process; raises `ConfigError` where the launcher says otherwise."""
        launched = "TORCHELASTIC_RUN_ID" in os.environ
        world = int(os.environ["WORLD_SIZE"]) if launched else 1
        if nodes > 1 and not launched:
            raise ConfigError(
                "several machines need a launcher", remedy="start `torchrun ... -m pneumoscope train` on each of them"
            )
        if launched and world != devices * nodes:
            raise ConfigError(
                f"torchrun started {world} processes, not {devices} on each of {nodes}",
                remedy="give --devices as torchrun's --nproc-per-node, and --nodes as its --nnodes",
            )
        return cls(devices, nodes, rank=int(os.environ["RANK"]) if launched else 0)

    @property
    def strategy(self) -> str:
        """Lightning's name of how the processes work together."""
        if self.devices * self.nodes == 1:
            return "auto"
        return "ddp" if "TORCHELASTIC_RUN_ID" in os.environ else "ddp_spawn"


@dataclass(frozen=True)
class Phase:
    """One call of `fit`: its name, what is read, and for how long.

    `balance`: sampling weight per training image, or None for plain shuffling.
    """

    name: str
    epochs: int
    train: Dataset[Any]
    val: Dataset[Any]
    balance: NDArray[Any] | None = None


class _Data(L.LightningDataModule):
    def __init__(self, phase: Phase, config: TrainConfig, seed: int) -> None:
        super().__init__()
        self.phase, self.config, self.seed = phase, config, seed

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.phase.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.phase.val, shuffle=False)

    def _loader(self, dataset: Any, *, shuffle: bool) -> DataLoader[Any]:
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        size = max(1, self.config.batch_size // world)
        sampler = EpochSampler(
            len(dataset),
            seed=self.seed,
            shuffle=shuffle,
            group=size * world,
            balance=self.phase.balance if shuffle else None,
            rank=rank,
            world=world,
        )
        return DataLoader(
            dataset,
            batch_size=size,
            sampler=sampler,  # yields (epoch, index), which our datasets take
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
        )


class _History(Callback):
    """One row per epoch; part of the checkpoint, so that a resumed run has each epoch once."""

    def __init__(self, phase: str, path: Path, images: int, report: Report | None) -> None:
        self.phase, self.path, self.images, self.report = phase, path, images, report
        self.rows: list[Row] = []
        self.started = 0.0
        self.trained = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trained = time.perf_counter() - self.started

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row: Row = {"phase": self.phase, "epoch": trainer.current_epoch + 1}
        row |= {name: values[name] for name in ("train_loss", "val_loss", _MONITOR, "val_accuracy")}
        row["lr"] = float(trainer.optimizers[0].param_groups[-1]["lr"])
        row["seconds"] = round(time.perf_counter() - self.started, 3)
        row["images_per_second"] = round(self.images / max(self.trained, 1e-9), 1)
        self.rows.append(row)
        trainer.callback_metrics[_KEPT] = torch.tensor(float(row["epoch"]) if kept_row(self.rows) is row else 0.0)
        if trainer.is_global_zero:
            write_json(self.path, self.rows)
            if self.report:
                self.report(row)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


class _AtomicCheckpoints(TorchCheckpointIO):
    """A checkpoint is whole or absent, also after a power cut."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # PyTorch's own writer reports a full disk like any other fault
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getvalue())


class _Checkpoint(ModelCheckpoint):
    """Recognises its best checkpoint where the run folder was moved before the resume."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = Path(str(self.dirpath))

        def moved_path(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        moved = {key: moved_path(state_dict[key]) for key in ("best_model_path", "kth_best_model_path")}
        best = {moved_path(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


class _Average(WeightAveraging):
    """Exponential moving average of weights and statistics, with a warm-up so that the start is forgotten."""

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=partial(_average, decay))


# At the top of the module, because spawned processes can take no other function.
def _average(decay: float, means: list[Tensor], currents: list[Tensor], count: Tensor | int) -> None:
    steps = float(count)
    rate = min(decay, (1 + steps) / (10 + steps))
    if means[0].is_floating_point():
        torch._foreach_lerp_(means, currents, 1 - rate)
    else:  # counters of batch norm
        torch._foreach_copy_(means, currents)


class _Patience(EarlyStopping):
    """Early stopping that has stopped for good: a process killed after its last epoch trains no further one."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stopped_epoch:
            trainer.should_stop = True


def fit(
    module_parts: tuple[nn.Module, list[dict[str, Any]], Sequence[nn.Module]],
    phase: Phase,
    config: TrainConfig,
    run: Path,
    *,
    seed: int,
    hardware: Hardware,
    resume: bool,
    report: Report | None = None,
    loggers: Any = False,
    bar: bool = False,
    teachers: Callable[[Tensor], Tensor] | None = None,
) -> list[Row]:
    """Train `(network, optimiser groups, modules kept in eval mode)` and leave the best epoch's weights in the network.

    Best is what `kept_row` says. Checkpoints go to `run/checkpoints/PHASE`.

    Returns:
        The rows of the history; none in a process of another rank than 0, whose network is not to be used after.

    Raises:
        TrainingError: the loss is not finite, or training was interrupted (the checkpoint stays).
        ConfigError: the hardware asked for is not here.
    """
    network, groups, still = module_parts
    keep_freed_memory()
    # Filling fresh memory with NaN would show reads of unwritten memory, at a third of the speed.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - its types do not know it
    folder = run / "checkpoints" / phase.name
    done, best, last = (folder / name for name in ("done.json", "best.ckpt", "last.ckpt"))
    network.to(memory_format=torch.channels_last)  # twice as fast on CPUs for depthwise convolutions
    if resume and done.is_file():
        _take(network, best)
        return list(read_json(done))
    network.train()
    module = Classifier(network, groups, config, epochs=phase.epochs, seed=seed, still=still, teachers=teachers)
    history = _History(phase.name, folder / "history.json", len(phase.train), report)  # type: ignore[arg-type]
    callbacks = _callbacks(history, best, last, config)
    trainer = _trainer(phase, config, hardware, callbacks, run, loggers, bar)
    checkpoint = str(last) if resume and last.is_file() else None
    if checkpoint:
        _read_checkpoint(last)
    try:
        trainer.fit(module, datamodule=_Data(phase, config, seed), ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:
        raise interrupted(run) from stop
    except ProcessRaisedException as error:
        reason = str(error).strip().rsplit("\n", maxsplit=1)[-1]
        raise TrainingError(f"a training process failed ({reason})", path=run, remedy="mend that first") from error
    if trainer.interrupted:
        raise interrupted(run)
    if hardware.rank:  # the files may not be there yet, and the first process reads them
        return []
    rows: list[Row] = list(read_json(history.path))
    _take(network, best)
    write_json(done, rows)
    return rows


def _callbacks(history: _History, best: Path, last: Path, config: TrainConfig) -> list[Callback]:
    every: dict[str, Any] = {
        "save_top_k": 1,
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    callbacks: list[Callback] = [
        history,
        _Checkpoint(best.parent, best.stem, monitor=_KEPT, mode="max", **every),
        _Checkpoint(last.parent, last.stem, monitor=None, every_n_epochs=1, **every),
    ]
    if config.ema:
        callbacks.insert(0, _Average(config.ema))
    if config.patience:
        callbacks.append(_Patience(_MONITOR, mode="max", patience=config.patience, check_on_train_epoch_end=True))
    return callbacks


def _trainer(
    phase: Phase,
    config: TrainConfig,
    hardware: Hardware,
    callbacks: list[Callback],
    run: Path,
    loggers: Any,
    bar: bool,
) -> L.Trainer:
    if bar:
        from lightning.pytorch.callbacks import RichProgressBar

        callbacks = [*callbacks, RichProgressBar(leave=False)]
    try:
        return L.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.nodes,
            strategy=hardware.strategy,
            max_epochs=phase.epochs,
            precision=config.precision,
            gradient_clip_val=config.clip or None,
            callbacks=callbacks,
            plugins=[_AtomicCheckpoints()],
            logger=loggers,
            deterministic="warn",
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=bar,
            default_root_dir=run,
        )
    except MisconfigurationException as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot train on this hardware ({reason})", remedy="ask for fewer --devices") from error


def interrupted(run: Path) -> TrainingError:
    """Return the error that says how to go on after an interruption."""
    return TrainingError("training was interrupted", path=run, remedy="go on from the last whole epoch with --resume")


def _read_checkpoint(file: Path) -> dict[str, Any]:
    try:
        with storage_errors(file):
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return content
    except (EOFError, KeyError, RuntimeError, ValueError, UnpicklingError) as error:
        raise TrainingError(
            "the checkpoint is damaged", path=file, remedy="remove the folder to begin this phase anew"
        ) from error


def _take(network: nn.Module, checkpoint: Path) -> None:
    """Load the network's weights from a checkpoint of ours."""
    state = _read_checkpoint(checkpoint)["state_dict"]
    prefix = "network."
    network.load_state_dict({key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)})
