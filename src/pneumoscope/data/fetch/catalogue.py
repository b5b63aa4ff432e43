"""The public radiograph collections: authors, licences, addresses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_KERMANY = (
    "Kermany DS, Goldbaum M, Cai W, et al. Identifying medical diagnoses and treatable diseases by "
    "image-based deep learning. Cell 2018;172(5):1122-1131. doi:10.1016/j.cell.2018.02.010. "
    "Data: doi:10.17632/rscbjbr9sj.2"
)
_MEDMNIST = (
    "Yang J, Shi R, Wei D, et al. MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D "
    "biomedical image classification. Scientific Data 2023;10:41. doi:10.1038/s41597-022-01721-8. "
    "Data: doi:10.5281/zenodo.10519652"
)
_ZENODO = "https://zenodo.org/records/10519652"

# side: (bytes as Zenodo lists them, MD5 as published in medmnist/info.py, version 3.0.2)
_PNEUMONIAMNIST = {
    28: (4_170_669, "28209eda62fecd6e6a2d98b1501bb15f"),
    64: (20_606_998, "8f4eceb4ccffa70c672198ea285246c6"),
    128: (75_506_212, "05b46931834c231683c68f40c47b2971"),
    224: (214_384_716, "d6a3c71de1b945ea11211b03746c1fe1"),
}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a public home; `digest` is `md5:HEX` or `sha256:HEX`, None where nobody published one."""

    name: str
    url: str
    size: int | None = None
    digest: str | None = None
    digest_origin: str = ""

    @property
    def check(self) -> str:
        """Say in one line how a download is checked."""
        if self.digest is None:
            return "no published checksum; size/zip integrity checked instead"
        return f"{self.digest} ({self.digest_origin})"


@dataclass(frozen=True, slots=True)
class DataSet:
    """One collection. `file` is None where only a person with a browser can fetch it.

    `images` is set where the file is an archive of that many radiographs in
    `train|val|test/NORMAL|PNEUMONIA`; it is unpacked to a folder named after the key.
    """

    key: str
    title: str
    licence: str
    citation: str
    home: str
    file: RemoteFile | None = None
    kaggle: str | None = None
    images: int | None = None
    steps: str = ""
    notes: str = ""

    def manual(self, out: Path) -> str:
        """Return the manual steps: page, file name, folder."""
        page = f"open {self.home} in a browser"
        if self.file is None:
            return f"{page}, {self.steps}, and put them into {out / self.key}"
        return f"{page}, download {self.file.name}, put it into {out} and run the command again"


def catalogue() -> dict[str, DataSet]:
    """Return every known collection by its key."""
    sets = [_kermany(), *(_pneumoniamnist(side) for side in _PNEUMONIAMNIST), _nih(), _openi()]
    return {entry.key: entry for entry in sets}


def _kermany() -> DataSet:
    home = "https://data.mendeley.com/datasets/rscbjbr9sj/2"
    files = "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files"
    return DataSet(
        key="kermany",
        title="Chest X-Ray Images (Pneumonia): 5,856 radiographs of children aged 1 to 5, Guangzhou",
        licence="CC BY 4.0",
        citation=_KERMANY,
        home=home,
        file=RemoteFile(
            name="ChestXRay2017.zip",
            url=f"{files}/f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
            size=1_235_512_464,
            digest="sha256:13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36",
            digest_origin="reported alike by independent public projects, not by the publisher",
        ),
        kaggle="paultimothymooney/chest-xray-pneumonia",
        images=5_856,
        notes=(
            "Kaggle's copy has train 5,216, val 16, test 624; Mendeley's train 5,232, test 624, no val. "
            "Version 3 of the Mendeley record packs the radiographs into an 8 GB archive; version 2 is used."
        ),
    )


def _pneumoniamnist(side: int) -> DataSet:
    size, md5 = _PNEUMONIAMNIST[side]
    key = "pneumoniamnist" if side == 28 else f"pneumoniamnist_{side}"
    return DataSet(
        key=key,
        title=f"PneumoniaMNIST (MedMNIST+ 3.0): the Kermany radiographs, centre-cropped, {side}×{side}",
        licence="CC BY 4.0",
        citation=f"{_MEDMNIST}. Images: {_KERMANY}",
        home=_ZENODO,
        # /records/ and not /api/records/: only the former answers byte ranges
        file=RemoteFile(
            name=f"{key}.npz",
            url=f"{_ZENODO}/files/{key}.npz?download=1",
            size=size,
            digest=f"md5:{md5}",
            digest_origin="published in medmnist 3.0.2, info.py",
        ),
        notes="train 4,708, val 524, test 624; the archive does not say which images are of one patient",
    )


def _nih() -> DataSet:
    return DataSet(
        key="nih-chestxray14",
        title="NIH ChestX-ray14: 112,120 frontal radiographs of 30,805 patients, labels mined from reports",
        licence="free use with attribution to the NIH Clinical Center and a link to the download site",
        citation=(
            "Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: hospital-scale chest X-ray "
            "database and benchmarks. CVPR 2017:3462-3471"
        ),
        home="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        steps="download the twelve images_*.tar.gz and Data_Entry_2017_v2020.csv, unpack them",
        notes="give it to the other commands as a CSV manifest (path,label,patient_id,…)",
    )


def _openi() -> DataSet:
    return DataSet(
        key="openi",
        title="Open-i Indiana University collection: 7,470 radiographs, 3,955 de-identified reports",
        licence="CC BY-NC-ND 4.0",
        citation=(
            "Demner-Fushman D, Kohli MD, Rosenman MB, et al. Preparing a collection of radiology "
            "examinations for distribution and retrieval. JAMIA 2016;23(2):304-310. doi:10.1093/jamia/ocv080"
        ),
        home="https://openi.nlm.nih.gov/faq",
        steps="download NLMCXR_png.tgz and NLMCXR_reports.tgz, unpack them",
        notes="give it to the other commands as a CSV manifest (path,label,…)",
    )
