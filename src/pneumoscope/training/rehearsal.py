"""What a run would do, checked before its first image is read."""

from __future__ import annotations

from pneumoscope.config import Experiment
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.split import divide
from pneumoscope.training.experiment import make_network
from pneumoscope.training.provenance import count_lines, passed_over


def checked(experiment: Experiment, manifest: Manifest) -> list[str]:
    """Return what a run would do, in lines, without reading an image; copies are not looked for.

    Raises:
        ConfigError, DataError, WeightsError: as `run_experiment`, before its first image.
    """
    network, weights, preparation = make_network(experiment)
    divided = divide(manifest, experiment.data, experiment.division_seed)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    source = "no weights" if weights is None else f"weights from {weights.source}"
    return [
        f"{experiment.model.network}, {experiment.model.strategy}, {parameters:,} parameters, {source}",
        f"{preparation.size} pixels, {experiment.all_epochs} epochs",
        *passed_over(manifest),
        *count_lines(divided),
    ]
