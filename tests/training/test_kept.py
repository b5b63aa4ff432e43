"""Which epoch is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pneumoscope.data.manifest import Manifest
from pneumoscope.training import strategy
from pneumoscope.training.kept import NEAR, Row, best_row, clearly_worse, kept_row


def rows(*figures: tuple[float, float], phase: str = "scratch") -> list[Row]:
    return [
        {"phase": phase, "epoch": epoch, "val_auroc": auroc, "val_loss": loss}
        for epoch, (auroc, loss) in enumerate(figures, 1)
    ]


@pytest.mark.parametrize(
    ("figures", "epoch"),
    [
        ([(0.7, 0.6), (0.9, 0.5), (0.8, 0.2)], 2),  # the highest AUROC, whatever the loss
        ([(0.8, 0.7), (1.0, 0.69), (1.0, 0.4), (1.0, 0.1), (1.0, 0.3)], 4),  # of ties the lowest loss
        ([(1.0, 0.69), (1.0 - NEAR / 2, 0.2)], 2),  # of near ties too
        ([(1.0, 0.2), (1.0 - NEAR / 2, 0.69)], 1),
        ([(1.0, 0.69), (1.0 - 2 * NEAR, 0.1)], 1),  # a clear difference is none
        ([(0.9, 0.3), (0.9 + NEAR / 2, 0.5), (0.9 + 1.4 * NEAR, 0.4)], 3),  # no creep: near is near the highest
        ([(0.5, 0.7)], 1),
    ],
)
def test_auroc_decides_and_near_ties_go_to_the_lower_loss(figures: list[tuple[float, float]], epoch: int) -> None:
    assert kept_row(rows(*figures))["epoch"] == epoch


def test_the_kept_row_is_always_near_the_highest() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        draws = torch.rand((12, 2), generator=generator)
        history = rows(*[(0.99 + 0.01 * float(a), float(b)) for a, b in draws])
        highest = max(float(row["val_auroc"]) for row in history)
        assert float(kept_row(history)["val_auroc"]) >= highest - NEAR


def test_a_later_phase_that_is_clearly_worse_is_not_kept() -> None:
    head, worse, near = (
        rows((auroc, loss), phase=phase)
        for auroc, loss, phase in ((0.99, 0.2, "head"), (0.95, 0.1, "finetune"), (0.989, 0.4, "finetune"))
    )
    assert best_row(head + worse)["phase"] == "head"
    assert best_row(head + near)["phase"] == "finetune"
    assert best_row(head + worse, comparable=False)["phase"] == "finetune"
    assert clearly_worse(worse[0], head[0])
    assert not clearly_worse(near[0], head[0])


def test_the_weights_of_before_come_back_and_the_run_says_so(
    chest_manifest: Manifest, small_experiment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumoscope.networks.network import build_network
    from pneumoscope.training.experiment import run_experiment

    network, _ = build_network("custom-cnn", classes=3)
    torch.save(network.encoder.model.state_dict(), tmp_path / "start.pth")
    experiment = small_experiment(
        model={"strategy": "finetune", "weights": str(tmp_path / "start.pth")},
        train={"head_epochs": 8},
    )
    kept: list[dict[str, Any]] = []

    def ruins(run: Any, name: str, unfreeze: int | None) -> list[Row]:
        kept.append({key: value.clone() for key, value in run.network.state_dict().items()})
        with torch.no_grad():
            for parameter in run.network.parameters():
                parameter.zero_()
        clock = {"seconds": 1.0, "images_per_second": 1.0, "lr": 0.1, "train_loss": 9.0, "val_accuracy": 0.5}
        return [{"phase": name, "epoch": 1, "val_auroc": 0.1, "val_loss": 9.0, **clock}]

    monkeypatch.setattr(strategy, "_on_images", ruins)
    summary = run_experiment(experiment, chest_manifest, tmp_path / "run", name="ruined")
    assert any("weights of head were kept" in notice for notice in summary["notices"])
    assert any("chose the epoch" in notice for notice in summary["notices"])
    assert summary["best_epoch"] <= 8
    from safetensors.torch import load_file

    written = load_file(tmp_path / "run" / "bundle" / "weights.safetensors")
    assert all(torch.allclose(written[key].float(), kept[0][key].float(), atol=1e-2, rtol=1e-2) for key in written)


@pytest.mark.parametrize(("named", "children"), [(1, False), (3, False), (8, True)])
def test_some_file_names_do_not_make_the_images_childrens(named: int, children: bool) -> None:
    from pneumoscope.data.naming import patient_from_name
    from pneumoscope.records import PNEUMONIA, Sample
    from pneumoscope.training.provenance import ages, limits

    names = [f"person{n}_virus_{n}.jpeg" if n < named else f"case{n}.png" for n in range(10)]
    samples = [Sample(name, patient_from_name(name) or name, PNEUMONIA, split="train") for name in names]
    manifest = Manifest(Path("source"), "csv", tuple(samples), "name")
    assert any("one to five years" in limit for limit in limits(manifest)) is children
    assert (ages(manifest) == (1.0, 5.0)) is children
