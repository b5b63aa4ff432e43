"""`data fetch`: a public collection, from its own home to a folder that the other commands can read.

A complete collection on the disk is returned without the network, and a file fetched with a browser is used as it is.
Of two runs at once the second waits for the first.
"""

from __future__ import annotations

import fcntl
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from pneumoscope.data.fetch.catalogue import DataSet, RemoteFile, catalogue
from pneumoscope.data.fetch.resumable import Patience, check_file, require_space, transfer
from pneumoscope.data.fetch.unpack import unpack
from pneumoscope.errors import DownloadError, storage_errors
from pneumoscope.files import atomic_folder, out_folder, read_json, write_json
from pneumoscope.records import LABELS, SPLITS, Progress
from pneumoscope.version import __version__

__all__ = ["Patience", "catalogue", "fetch"]

SEAL = "fetched.json"

_SUFFIXES = (".jpeg", ".jpg", ".png")


def fetch(
    dataset: str | DataSet,
    out: Path,
    *,
    client: httpx.Client | None = None,
    progress: Progress | None = None,
    base_url: str | None = None,
    patience: Patience | None = None,
) -> Path:
    """Fetch a collection into `out` and return its file (`.npz`) or folder, ready for `open_source`.

    `dataset`: a key of the catalogue, or a collection that need not be in it. `progress` is called with (bytes so far,
    bytes in all or None). `base_url` is a mirror that holds the files under their catalogue names; it replaces every
    public home. The check is the same wherever a file comes from.

    Raises:
        DownloadError: unknown key, no home can be reached, a file fails its check; the remedy gives the
            manual steps.
        StorageError: the disk is full or read-only.
    """
    if isinstance(dataset, str):
        sets = catalogue()
        if dataset not in sets:
            raise DownloadError(f"no data set is called {dataset!r}", remedy=f"choose one of {', '.join(sets)}")
        dataset = sets[dataset]
    remote = dataset.file
    if remote is None:
        raise DownloadError(f"{dataset.key} has no direct download", remedy=dataset.manual(out))
    folder = out_folder(out)
    line = _Line(client, progress, base_url, patience)
    with _locked(folder / f".{dataset.key}.lock"):
        if dataset.images is None:
            return _fetch_file(dataset, remote, folder, line)
        return _fetch_folder(dataset, remote, folder, line)


@dataclass(frozen=True, slots=True)
class _Line:
    """How to reach the outside."""

    client: httpx.Client | None
    progress: Progress | None
    base_url: str | None
    patience: Patience | None


def _fetch_file(dataset: DataSet, remote: RemoteFile, out: Path, line: _Line) -> Path:
    path = out / remote.name
    if path.exists():
        check_file(path, remote, "remove it and run the command again")
        return path
    url = remote.url if line.base_url is None else f"{line.base_url.rstrip('/')}/{remote.name}"
    with _new_client() if line.client is None else nullcontext(line.client) as client:
        return transfer(
            remote,
            path,
            url=url,
            client=client,
            remedy=dataset.manual(out),
            progress=line.progress,
            patience=line.patience,
        )


def _new_client() -> httpx.Client:
    headers = {"User-Agent": f"pneumoscope/{__version__}"}
    return httpx.Client(timeout=httpx.Timeout(60.0, connect=15.0), headers=headers)


def _fetch_folder(dataset: DataSet, remote: RemoteFile, out: Path, line: _Line) -> Path:
    target = out / dataset.key
    if target.is_dir() and any(target.iterdir()):
        _check_folder(target, dataset)
        return target
    archive = out / remote.name
    downloaded = archive.exists()
    refused = ""
    if not downloaded and dataset.kaggle and line.base_url is None:
        try:
            return _from_kaggle(dataset, dataset.kaggle, target)
        except DownloadError as error:
            refused = error.what
    # the archive and its radiographs, which zip hardly shrinks, less the bytes present
    present = sum(path.stat().st_size for path in out.glob(f"{remote.name}*"))
    require_space(out, 2 * (remote.size or 0) - present)
    try:
        _fetch_file(dataset, remote, out, line)
    except DownloadError as error:
        if not refused:
            raise
        raise DownloadError(f"{refused}; {error.what}", path=error.path, remedy=error.remedy) from error
    # of a mirror only the host: its address may carry a password
    home = dataset.home if line.base_url is None else f"mirror {httpx.URL(line.base_url).host}"
    route = "a file downloaded before" if downloaded else home
    return _from_archive(dataset, archive, target, route, keep=downloaded)


def _from_archive(dataset: DataSet, archive: Path, target: Path, route: str, *, keep: bool) -> Path:
    """Unpack an archive to `target`; one that this run fetched is removed afterwards."""
    try:
        with atomic_folder(target) as staging:
            unpack(archive, staging, _member_path)
            _seal(staging, dataset, route)
    except DownloadError as error:
        remedy = f"{'remove this file, then ' if keep else ''}{dataset.manual(archive.parent)}"
        if not keep:
            archive.unlink()
        raise DownloadError(error.what, path=archive, remedy=remedy) from error
    if not keep:
        archive.unlink()
    return target


def _from_kaggle(dataset: DataSet, handle: str, target: Path) -> Path:
    """Let Kaggle's own client fill its cache, and copy the radiographs from there, each once."""
    root = _kaggle_download(handle)
    chosen: dict[PurePosixPath, Path] = {}
    with storage_errors(root):
        files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in sorted(files, key=lambda item: (len(item.parts), item)):
        target_path = _member_path(PurePosixPath(path.relative_to(root).as_posix()))
        if target_path is not None:
            chosen.setdefault(target_path, path)
    with atomic_folder(target) as staging:
        for target_path, path in chosen.items():
            (staging / target_path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, staging / target_path)
        _seal(staging, dataset, f"https://www.kaggle.com/datasets/{handle}")
    return target


def _kaggle_download(handle: str) -> Path:
    import kagglehub  # slow to import, and it configures a logger
    from kagglehub import exceptions

    own = [kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    # OSError: network (requests) and disk; ValueError: credentials or an archive that its client cannot read
    foreign: tuple[type[Exception], ...] = (*own, OSError, ValueError, zipfile.BadZipFile, zlib.error)
    try:
        return Path(kagglehub.dataset_download(handle))
    except foreign as error:
        # without an answer the text is a stack of urllib3 phrases: the name of the error suffices
        answered = not isinstance(error, OSError) or getattr(error, "response", None) is not None
        reason = (answered and " ".join(str(error).split())[:160]) or type(error).__name__
        raise DownloadError(f"Kaggle did not give {handle} ({reason})") from error


def _member_path(path: PurePosixPath) -> PurePosixPath | None:
    """Return `split/LABEL/name` for a radiograph at any depth, and None for anything else."""
    split, label, name = ("", *path.parts)[-3:] if len(path.parts) >= 3 else ("", "", "")
    if split not in SPLITS or label not in LABELS or name.startswith("."):
        return None
    return PurePosixPath(split, label, name) if path.suffix.lower() in _SUFFIXES else None


def _measure(folder: Path) -> tuple[int, int]:
    """Return the number of radiographs in `split/LABEL/` and their bytes."""
    with storage_errors(folder):
        inside = [(path, PurePosixPath(*path.relative_to(folder).parts)) for path in folder.glob("*/*/*")]
        sizes = [path.stat().st_size for path, name in inside if _member_path(name)]
    return len(sizes), sum(sizes)


def _seal(folder: Path, dataset: DataSet, route: str) -> None:
    """Write the origin of the radiographs; raise `DownloadError` where some are missing."""
    images, size = _measure(folder)
    if images != dataset.images:
        raise DownloadError(f"{route} holds {images} radiographs where {dataset.images} were expected")
    record: dict[str, Any] = {
        "key": dataset.key,
        "title": dataset.title,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "home": dataset.home,
        "route": route,
        "images": images,
        "bytes": size,
    }
    write_json(folder / SEAL, record)


def _check_folder(folder: Path, dataset: DataSet) -> None:
    images, size = _measure(folder)
    sealed = read_json(folder / SEAL) if (folder / SEAL).exists() else {}
    wanted = sealed.get("bytes", size) if isinstance(sealed, dict) else None
    if (images, size) != (dataset.images, wanted):
        raise DownloadError(
            f"exists already, but with {images} radiographs of {size} bytes where {dataset.images} of "
            f"{wanted} bytes were expected",
            path=folder,
            remedy="move it away and run the command again",
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock `path`; a second process or thread waits. The file stays: removing it would race."""
    with storage_errors(path):
        handle = path.open("w")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
