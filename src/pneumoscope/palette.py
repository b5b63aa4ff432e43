"""The colours of figures and pages: Okabe and Ito's, told apart by all common kinds of colour vision.

Source: Okabe and Ito, Color Universal Design, 2008 (jfly.uni-koeln.de/color).
"""

from __future__ import annotations

from types import MappingProxyType

from pneumoscope.records import BACTERIAL, NORMAL, PNEUMONIA, VIRAL

BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
SKY = "#56b4e9"
ORANGE = "#e69f00"
INK = "#1b1f24"
MUTED = "#5b6570"
RULE = "#c9d0d6"
PAPER = "#fefefe"

SERIES = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE)
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (8, 3)), (0, (1, 1)))
CLASSES = MappingProxyType({NORMAL: BLUE, PNEUMONIA: VERMILION, BACTERIAL: VERMILION, VIRAL: ORANGE})

# Each colour's CSS variable, so that an inline figure follows the page into dark mode.
VARIABLES = MappingProxyType(
    {
        BLUE: "blue",
        VERMILION: "vermilion",
        GREEN: "green",
        PURPLE: "purple",
        SKY: "sky",
        ORANGE: "orange",
        INK: "ink",
        MUTED: "muted",
        RULE: "rule",
        PAPER: "paper",
    }
)
