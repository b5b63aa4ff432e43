"""Labelled images that the network holds to be like this one, by the cosine distance of its embeddings.

Likeness is the network's own: what it does not look at does not count. An embedding is what the head reads, the mean
over the image and its mirror image where the network answers about both.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_tensors

from pneumoscope.bundle.bundle import Bundle
from pneumoscope.data.checks.duplicates import MAX_DISTANCE, MIN_CORRELATION, correlation
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.naming import patient_from_name
from pneumoscope.data.scan import scan
from pneumoscope.errors import DataError, ImageError
from pneumoscope.files import write_bytes
from pneumoscope.images import read_image
from pneumoscope.images.preparation import Pixels
from pneumoscope.networks.transforms import prepare
from pneumoscope.predict import Classifier
from pneumoscope.records import FloatArray, Progress, Sample

NEIGHBOURS = 6
_BATCH = 32
_VERSION = 1
_TENSORS = frozenset({"embeddings", "hashes", "thumbs"})

Embed = Callable[[Pixels], FloatArray]


@dataclass(frozen=True)
class Gallery:
    """The labelled images of a source, as the network sees them: row i of everything is `manifest.samples[i]`.

    `embeddings`: float32 [n, F], of length 1, zero where an image could not be read; `hashes`: uint64 [n];
    `thumbs`: uint8 [n, 64, 64]; `sha256`: of the files, "" where there is none. `embed`: float32 [B, F] from uint8
    [B, canvas, canvas].
    """

    manifest: Manifest
    embeddings: FloatArray
    hashes: NDArray[np.uint64]
    thumbs: NDArray[np.uint8]
    sha256: tuple[str, ...]
    embed: Embed
    cached: bool

    def facts(self) -> dict[str, Any]:
        """Return what a reader should know of the source."""
        readable = np.any(self.embeddings != 0, axis=1).tolist()
        labels = [sample.label for sample, usable in zip(self.manifest.samples, readable, strict=True) if usable]
        return {
            "source": str(self.manifest.source),
            "images": sum(readable),
            "unreadable": len(readable) - sum(readable),
            "labels": {str(name): labels.count(name) for name in sorted({str(label) for label in labels})},
            "patients": self.manifest.patient_rule,
        }


def embedder(bundle: Bundle) -> Embed:
    """Return a function from uint8 [B, canvas, canvas] to embeddings float32 [B, F] of length 1, by PyTorch.

    Raises:
        BundleError: the bundle's weights are missing, changed, or do not fit its network.
    """
    network, preparation = bundle.network, bundle.preparation

    def embed(canvases: Pixels) -> FloatArray:
        images = prepare(torch.from_numpy(np.array(canvases)), preparation)
        with torch.inference_mode():
            embedding = network.embed(images)
            if preparation.mirror:
                mirrored = images.flip(-1).contiguous(memory_format=torch.channels_last)
                embedding = (embedding + network.embed(mirrored)) / 2
        return _unit(embedding.float().numpy())

    return embed


def _unit(rows: FloatArray) -> FloatArray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    result: FloatArray = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return result


def open_gallery(
    classifier: Classifier, manifest: Manifest, cache: Path, *, progress: Progress | None = None
) -> Gallery:
    """Embed the labelled images of a source, or read stored embeddings.

    Args:
        classifier: its bundle must hold PyTorch weights.
        manifest: the source.
        cache: a safetensors file, read where it is of this bundle and these images, else written anew.
        progress: called with (images done, images in all).

    Raises:
        BundleError: the bundle has no usable weights.
        DataError: no image has a label.
    """
    manifest = manifest.labelled()
    embed = embedder(classifier.bundle)
    key = _key(classifier.bundle, manifest)
    if (stored := _read(cache, key, len(manifest))) is not None:
        arrays, sha256 = stored
        return Gallery(manifest, arrays["embeddings"], arrays["hashes"], arrays["thumbs"], sha256, embed, True)
    measured = scan(manifest)
    rows = [
        _embedded(classifier, embed, manifest.samples[start : start + _BATCH], start, len(manifest), progress)
        for start in range(0, len(manifest), _BATCH)
    ]
    embeddings = np.concatenate(rows)
    sha256 = tuple(str(value) for value in measured.table["sha256"])
    arrays = {"embeddings": embeddings, "hashes": measured.hashes, "thumbs": measured.thumbs}
    write_bytes(cache, save_tensors(arrays, {"key": key, "sha256": json.dumps(sha256)}))
    return Gallery(manifest, embeddings, measured.hashes, measured.thumbs, sha256, embed, False)


def _embedded(
    classifier: Classifier, embed: Embed, samples: Sequence[Sample], start: int, total: int, progress: Progress | None
) -> FloatArray:
    canvas = classifier.bundle.preparation.canvas
    canvases, readable = np.zeros((len(samples), canvas, canvas), np.uint8), np.zeros(len(samples), bool)
    for index, sample in enumerate(samples):
        try:
            canvases[index] = classifier.canvas(read_image(sample.path, at_least=2 * canvas))
        except ImageError:
            continue
        readable[index] = True
    if progress:
        progress(start + len(samples), total)
    return np.asarray(embed(canvases) * readable[:, None], np.float32)


def _key(bundle: Bundle, manifest: Manifest) -> str:
    base = manifest.source if manifest.source.is_dir() else manifest.source.parent
    names = [os.path.relpath(sample.path, base) for sample in manifest.samples]
    facts = [_VERSION, bundle.sha256, manifest.fingerprint(), names]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read(cache: Path, key: str, count: int) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    if not cache.is_file():
        return None
    try:
        with safe_open(cache, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key or set(file.keys()) != _TENSORS:
                return None
            arrays = {name: file.get_tensor(name) for name in _TENSORS}
        sha256 = tuple(json.loads(metadata["sha256"]))
    except SafetensorError as error:
        raise DataError("is not a file of embeddings", path=cache, remedy="delete it, or name another file") from error
    return (arrays, sha256) if {len(sha256), *map(len, arrays.values())} == {count} else None


# --- neighbours -------------------------------------------------------------------------------------------


def nearest(gallery: Gallery, path: str, canvas: Pixels, count: int = NEIGHBOURS) -> dict[str, Any]:
    """Return the `count` nearest images of other patients, one for each patient.

    Left out are images of the same patient, as far as source or file name identify the patient, the image itself, files
    with the same bytes, and near-duplicates.

    Args:
        gallery: the labelled images.
        path: of the query image.
        canvas: the same, uint8 [canvas, canvas].
        count: how many.

    Returns:
        `neighbours`: path, label, subtype and cosine distance (0..2) of each, the nearest first;
        `shares`: label -> its share of them; `left_out`: reason -> number of nearer images passed over;
        `patient_known`: whether source or file name identify the patient.
    """
    query = _query(gallery, path)
    distances = 1 - gallery.embeddings @ gallery.embed(canvas[None])[0]
    chosen: list[dict[str, Any]] = []
    left_out: dict[str, int] = {}
    taken: set[str] = set()
    for row in np.argsort(distances, kind="stable").tolist():
        sample = gallery.manifest.samples[row]
        if not gallery.embeddings[row].any():
            continue
        reason = _unfit(gallery, row, query) or (
            "another image of a patient shown" if sample.patient_id in taken else ""
        )
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        taken.add(sample.patient_id)
        facts = {"path": sample.path, "label": sample.label, "subtype": sample.subtype}
        chosen.append({**facts, "distance": round(max(0.0, float(distances[row])), 6)})
        if len(chosen) == count:
            break
    labels = [str(neighbour["label"]) for neighbour in chosen]
    return {
        "neighbours": chosen,
        "shares": {name: labels.count(name) / len(labels) for name in sorted(set(labels))},
        "left_out": left_out,
        "patient_known": bool(query.patients),
    }


@dataclass(frozen=True)
class _Query:
    """The query image: its path, content and patients."""

    path: Path
    sha256: str
    hash: NDArray[np.uint64]
    thumb: NDArray[np.uint8]
    patients: frozenset[str]


def _query(gallery: Gallery, path: str) -> _Query:
    resolved = Path(path).resolve()
    same = {sample.patient_id for sample in gallery.manifest.samples if Path(sample.path).resolve() == resolved}
    named = patient_from_name(path)
    alone = replace(gallery.manifest, samples=(Sample(path, ""),), kind="folder")
    measured = scan(alone)
    patients = frozenset(same | ({named} if named else set()))
    return _Query(resolved, str(measured.table["sha256"].iloc[0]), measured.hashes[0], measured.thumbs[0], patients)


def _unfit(gallery: Gallery, row: int, query: _Query) -> str:
    sample = gallery.manifest.samples[row]
    if Path(sample.path).resolve() == query.path or (query.sha256 and gallery.sha256[row] == query.sha256):
        return "the same image"
    if {sample.patient_id, patient_from_name(sample.path)} & query.patients:
        return "the same patient"
    if np.bitwise_count(gallery.hashes[row] ^ query.hash) <= MAX_DISTANCE:
        alike = correlation(gallery.thumbs[row][None], query.thumb[None])[0]
        if alike >= MIN_CORRELATION:
            return "nearly the same image"
    return ""
