"""The presentation state: outline and result as a layer over the original, which a viewer shows or hides.

Source: DICOM PS3.3, A.33.1 (Grayscale Softcopy Presentation State) and C.10.5 (annotation units).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from highdicom import VOILUT, ModalityLUTTransformation, PresentationLUTTransformation
from highdicom import pr as presentation
from highdicom.color import CIELabColor
from matplotlib.colors import to_rgb
from pydicom import Dataset

from pneumoscope.errors import ImageError
from pneumoscope.images import dicom_errors, display_window, voi_table
from pneumoscope.palette import ORANGE
from pneumoscope.serving.results import words
from pneumoscope.serving.results.cleaned_header import number, read
from pneumoscope.serving.results.finding import Encoded
from pneumoscope.serving.results.instance import CREATOR, Case
from pneumoscope.serving.results.regions import outlines

KIND = "gsps"
_TEXT = (0.0, 0.86, 1.0, 1.0)  # left, top, right, bottom of the displayed area: under the costophrenic angles


def build(case: Case) -> Encoded | None:
    """Return the presentation state; None where the radiograph is no grey image with a size."""
    header, source = case.header, case.finding.source
    grey = header.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2")
    if not grey or min(header.Rows, header.Columns) < 2 or source.get("ModalityLUTSequence"):
        return None
    layer = presentation.GraphicLayer("RESEARCH", 1, words.NOTICE, display_color=_colour(ORANGE))
    # A presentation state has no content date; highdicom refuses one.
    arguments = case.arguments(KIND, 9003, "Pneumoscope marks (research)")
    state = presentation.GrayscaleSoftcopyPresentationState(
        referenced_images=[case.evidence],
        content_label="PNEUMOSCOPE",
        content_description=words.headline(case.finding),
        content_creator_name=CREATOR,
        graphic_layers=[layer],
        graphic_annotations=[_annotation(case, layer)],
        modality_lut_transformation=_rescale(source),
        voi_lut_transformations=_voi(source),
        presentation_lut_transformation=PresentationLUTTransformation(_shape(header)),
        **{name: value for name, value in arguments.items() if name not in ("content_date", "content_time")},
    )
    return case.finish(KIND, state)


def _annotation(case: Case, layer: Any) -> Any:
    header, finding = case.header, case.finding
    lines = [words.NOTICE, words.headline(finding), words.score(finding), words.caution(finding)]
    text = presentation.TextObject(
        "\r\n".join(lines)[:1024], units="DISPLAY", bounding_box=_TEXT, text_justification="LEFT"
    )
    drawn = outlines(finding.heatmap, header.Columns, header.Rows) if words.flagged(finding) else []
    return presentation.GraphicAnnotation(
        referenced_images=[header],
        graphic_layer=layer,
        graphic_objects=[presentation.GraphicObject("POLYLINE", outline, units="PIXEL") for outline in drawn],
        text_objects=[text],
    )


def _colour(name: str) -> Any:
    from skimage.color import rgb2lab

    lightness, a, b = (float(value) for value in rgb2lab(np.array(to_rgb(name))))
    return CIELabColor(lightness, a, b)


def _rescale(source: Dataset) -> Any:
    slope, intercept = number(read(source, "RescaleSlope")), number(read(source, "RescaleIntercept"))
    return ModalityLUTTransformation(intercept, slope, "US") if slope and intercept is not None else None


def _voi(source: Dataset) -> list[Any] | None:
    """Return the window of `images.read_image`: without it a viewer would show the whole range, nearly black."""
    try:
        with dicom_errors(Path("header"), "has no usable window", "nothing to do"):
            if (lut := voi_table(source)) is not None:
                first, bits, table = lut
                shades = np.rint(np.clip(table / (2**bits - 1), 0, 1) * 65535).astype(np.uint16)
                return [presentation.SoftcopyVOILUTTransformation(voi_luts=[VOILUT(first, shades)])]
            centre, width, function = display_window(source)
    except ImageError:
        return None
    middle, span = number(centre), number(width)
    if middle is None or not span:
        return None
    return [presentation.SoftcopyVOILUTTransformation(middle, span, voi_lut_function=function)]


def _shape(header: Dataset) -> str:
    """The presentation state replaces the photometric interpretation (DICOM PS3.3, C.11.6.1.2)."""
    inverse = header.PhotometricInterpretation == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE"
    return "INVERSE" if inverse else "IDENTITY"
