"""The pictures of a comparison show the numbers they are made of."""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from mi_prun.comparison.comparison_plots import segments_svg

BLOCKS = 5


def cells(svg: str) -> np.ndarray:
    """(L, L, 4) the colour in the middle of each cell of the heat map, the widest image of the picture."""
    images = []
    for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}image"):
        data = element.attrib["{http://www.w3.org/1999/xlink}href"].removeprefix("data:image/png;base64,")
        pixels = imread(io.BytesIO(base64.b64decode(data)))
        images.append(pixels[::-1] if "scale(1 -1)" in element.attrib.get("transform", "") else pixels)
    image = max(images, key=lambda pixels: pixels.shape[1])
    middles = [np.linspace(0, size, BLOCKS, endpoint=False) + size / BLOCKS / 2 for size in image.shape[:2]]
    colours: np.ndarray = image[np.ix_(*(middle.astype(int) for middle in middles))]
    return colours


def test_the_heat_map_has_a_cell_for_each_segment_in_the_colour_of_its_cost() -> None:
    cost = np.triu(np.random.default_rng(0).random((BLOCKS + 1, BLOCKS + 1)), 1)
    colours = cells(segments_svg(cost))
    shown = cost[:-1, 1:]
    segment = np.triu(np.ones((BLOCKS, BLOCKS), dtype=bool))
    low, high = shown[segment].min(), shown[segment].max()
    wanted = mpl.colormaps["cividis"]((shown - low) / (high - low))
    assert colours[segment] == pytest.approx(wanted[segment], abs=0.02)
    assert not colours[~segment][:, 3].any()  # no segment ends before it begins
