"""Every image that a gateway must survive: what is sent, and what must become of it."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom import uid as syntaxes
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from scripts.pacs.radiographs import radiograph
from tests.support.dicom_files import SEEDS, SIDE, chest, eight_bit, encoded, file_of, garbled, labelled
from tests.support.findings import finding

from pneumoscope.serving.results import encode
from pneumoscope.serving.store.database import now
from pneumoscope.serving.store.tables import DECLINED, DONE, QUARANTINED

TAKEN, NO_OBJECT, NONE = "0x0000", "0xC000", "not kept"


@dataclass(frozen=True)
class Case:
    """An image. `state`: one of these must become of it; `says`: words of the reason; `name`: the patient's."""

    title: str
    sent: str
    make: Callable[[], bytes]
    state: tuple[str, ...] = (DONE,)
    says: str = ""
    status: str = TAKEN
    name: str | None = None


def _with(**changes: Any) -> Callable[[], bytes]:
    return lambda: encoded(chest(**changes))


def _pixels(values: np.ndarray[Any, Any], **changes: Any) -> Callable[[], bytes]:
    height, width = values.shape[:2]
    return _with(Rows=height, Columns=width, PixelData=values.tobytes(), **changes)


def _named(charset: str | list[str], codec: str, name: str, escape: bytes = b"") -> Callable[[], bytes]:
    """Write a name in its own bytes, as a foreign modality does."""

    def make() -> bytes:
        source = chest(SpecificCharacterSet=charset)
        value = escape + name.encode(codec)
        value += b" " * (len(value) % 2)
        tag = source["PatientName"].tag
        source._dict[tag] = RawDataElement(tag, "PN", len(value), value, 0, False, True)
        return encoded(source)

    return make


def _stored(bits: int, **changes: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        values = np.frombuffer(radiograph(SIDE).PixelData, "<u2") >> 4
        deep = (values.astype(np.uint32) << max(0, bits - 8)).astype(np.uint16)
        middle = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
        return encoded(chest(BitsStored=bits, HighBit=bits - 1, PixelData=deep.tobytes(), **middle, **changes))

    return make


def _signed() -> bytes:
    values = np.frombuffer(radiograph(SIDE).PixelData, "<u2").astype(np.int16) - 2048
    return encoded(chest(PixelRepresentation=1, PixelData=values.tobytes(), WindowCenter=0, WindowWidth=4096))


def _looked_up() -> bytes:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 16], list(range(0, 65536, 16))
    source = chest(WindowCenter=None, WindowWidth=None)
    source.VOILUTSequence = [item]
    source.VOILUTSequence[0]["LUTDescriptor"].VR = "US"
    source.VOILUTSequence[0]["LUTData"].VR = "US"
    return encoded(source)


def _inflating() -> bytes:
    """Less than half a megabyte that inflates to 400."""
    meta = pydicom.dcmread(io.BytesIO(file_of(syntaxes.DeflatedExplicitVRLittleEndian))).file_meta
    plain = encoded(chest())
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = deflater.compress(plain[plain.index(b"\x08\x00\x05\x00CS") :])
    for _ in range(400):
        packed += deflater.compress(bytes(1 << 20))
    head = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(head, meta)
    return bytes(128) + b"DICM" + head.getvalue() + packed + deflater.flush()


def _claiming() -> bytes:
    """A JPEG 2000 stream whose head says 60,000 x 60,000."""
    data = bytearray(file_of(syntaxes.JPEG2000Lossless))
    at = data.index(b"\xff\x4f\xff\x51")
    for offset in (8, 12, 24, 28):  # Xsiz, Ysiz, XTsiz, YTsiz
        data[at + offset : at + offset + 4] = (60_000).to_bytes(4)
    return bytes(data)


def _large(side: int = 6400) -> bytes:
    values = np.frombuffer(radiograph(SIDE).PixelData, "<u2").reshape(SIDE, SIDE)
    big = np.kron(values, np.ones((side // SIDE, side // SIDE), np.uint16))
    return _pixels(big)()


def _own(kind: str) -> bytes:
    (built,) = encode(finding(chest()), (kind,), now())
    return built.data


def _without_length() -> bytes:
    return encoded(chest())[:-5000]


_NO, _CUT = "not analysed, because ", "not analysed, because the image cannot be used"
_GARBLED = "100 random bytes in its middle"
# Of these, damage leaves pixels that nothing can tell from others: no checksum, and a decoder that goes on.
_SILENT = ("Implicit VR Little Endian", "Explicit VR Little Endian", "Explicit VR Big Endian")


def _syntaxes() -> tuple[Case, ...]:
    cases = []
    for name, make in SEEDS.items():
        cases.append(Case(f"{name}, good", f"{SIDE} x {SIDE} radiograph", make))
        silent = name in _SILENT or "2000" in name
        state = (DONE, QUARANTINED) if silent else (QUARANTINED,)

        def damaged(make: Callable[[], bytes] = make) -> bytes:
            return garbled(make())

        status = "0x0000 or 0xC000" if "Deflated" in name else TAKEN
        cases.append(Case(f"{name}, garbled", _GARBLED, damaged, state, "", status))
    others = (
        syntaxes.HTJ2KLossless, syntaxes.HTJ2K, syntaxes.JPEG2000MC, syntaxes.MPEG2MPML, syntaxes.MPEG4HP41,
        syntaxes.HEVCMP51,
    )  # fmt: skip
    for uid in others:
        cases.append(
            Case(f"{uid.name}, noise", "1,000 random bytes as its frame",
                 lambda uid=uid: labelled(uid, np.random.default_rng(0).bytes(1000)), (QUARANTINED,), _CUT)  # type: ignore[misc]
        )  # fmt: skip
    return tuple(cases)


# fmt: off
PIXELS = (
    Case("8 bit", "8 stored bits", lambda: encoded(eight_bit())),
    *(Case(f"{bits} bit", f"{bits} stored of 16 bits", _stored(bits)) for bits in (10, 12, 16)),
    Case("signed", "pixel representation 1", _signed),
    Case("MONOCHROME1", "0 is white", _with(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")),
    Case("no window", "no window centre and width", _with(WindowCenter=None, WindowWidth=None)),
    Case("several windows", "two windows", _with(WindowCenter=[2048, 1000], WindowWidth=[4096, 500])),
    Case("VOI LUT", "a table of 4096 entries", _looked_up),
    Case("window of width 0", "width 0", _with(WindowWidth=0)),
    Case("window without end", "centre 1e308", _with(WindowCenter=1e308)),
    Case("rescaled to infinity", "slope 1e308", _with(RescaleSlope=1e308, RescaleIntercept=0), (QUARANTINED,), _CUT),
    Case("colour", "RGB", lambda: encoded(eight_bit(
        SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, WindowCenter=None,
        PixelData=np.repeat(np.frombuffer(eight_bit().PixelData, np.uint8), 3).tobytes()))),
    Case("truncated pixels", "two bytes of pixels", _with(PixelData=b"\0\0"), (QUARANTINED,), _CUT),
    Case("file cut off", "5,000 bytes missing at the end", _without_length, (QUARANTINED,), _CUT),
    Case("missing pixels", "no pixel data", _with(PixelData=None), (QUARANTINED,), _CUT),
    Case("multi-frame", "3 frames", _with(NumberOfFrames=3), (DECLINED,), "it has 3 frames"),
    Case("Rows = 0", "Rows 0", _with(Rows=0), (DECLINED,), "no pixels"),
    Case("nothing to see", "one value", _with(PixelData=bytes(2 * SIDE * SIDE)), (DONE,), "nearly constant"),
    Case("40 megapixels", "6,400 x 6,400, 16 bit, 82 MB", _large),
    Case("more megapixels than allowed", "Rows and Columns 65,535", _with(Rows=65535, Columns=65535), (QUARANTINED,),
         "over the limit"),
    Case("decompression bomb, deflated", "0.4 MB that inflate to 400", _inflating, (NONE,), "", NO_OBJECT),
    Case("decompression bomb, JPEG 2000", "a stream that says 60,000 x 60,000", _claiming, (QUARANTINED,),
         "not analysed, because "),
)

CONTENT = (
    Case("lateral view", "ViewPosition LL", _with(ViewPosition="LL"), (DECLINED,), "its view is LL"),
    Case("lateral, in words", "StudyDescription", _with(StudyDescription="Thorax seitlich"), (DECLINED,), "no frontal"),
    Case("other body part", "HAND", _with(BodyPartExamined="HAND"), (DECLINED,), "it shows HAND"),
    Case("other modality", "CT", _with(Modality="CT"), (DECLINED,), "its modality is CT"),
    Case("raw data", "FOR PROCESSING", _with(PresentationIntentType="FOR PROCESSING"), (DECLINED,), "raw data"),
    Case("sender's clock a year ahead", "StudyDate 2099", _with(StudyDate="20990101", PatientAge="005Y")),
    Case("born after the study", "no age, birth date 2099", _with(PatientBirthDate="20990101", PatientAge=None)),
    Case("no study", "no StudyInstanceUID", _with(StudyInstanceUID=None), (NONE,), "", NO_OBJECT),
    Case("header of 1 MB", "a patient's comment of 1 MB", _with(ImageComments="x" * (1 << 20))),
)

NAMES = (
    Case("ISO 2022 IR 87", "Japanese", _named(["", "ISO 2022 IR 87"], "iso2022_jp", "Yamada^Tarou=山田^太郎"),
         name="Yamada^Tarou=山田^太郎"),
    Case("ISO 2022 IR 149", "Korean", _named(["", "ISO 2022 IR 149"], "euc_kr", "Hong^Gildong=", b"\x1b$)C"),
         name="Hong^Gildong"),
    Case("GB18030", "Chinese", _named("GB18030", "gb18030", "Wang^XiaoDong=王^小东"), name="Wang^XiaoDong=王^小东"),
    Case("UTF-8", "Greek", _named("ISO_IR 192", "utf-8", "Διονυσιος"), name="Διονυσιος"),
    Case("ISO_IR 144", "Cyrillic", _named("ISO_IR 144", "iso8859_5", "Люкceмбypг"), name="Люкceмбypг"),
    Case("broken character set", "KLINGON", _named("KLINGON", "latin-1", "Müller")),
    Case("bytes that are no UTF-8", "ISO_IR 192", _named("ISO_IR 192", "latin-1", "Müller^Jörg")),
)

OWN = tuple(
    Case(f"own {kind.upper()} back", "a result of this software", lambda kind=kind: _own(kind), (NONE,))  # type: ignore[misc]
    for kind in ("sr", "sc", "gsps", "seg")
)
# fmt: on


CASES = (*_syntaxes(), *PIXELS, *CONTENT, *NAMES, *OWN)
