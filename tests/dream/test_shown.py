"""What a notebook shows of an imagination."""

from __future__ import annotations

import io

from PIL import Image


def test_images_are_shown_as_a_sheet(dream):
    images = dream.images
    shown = Image.open(io.BytesIO(images._repr_png_()))
    assert shown.size == (4 * 64, 6 * 64)  # four images of each of six classes
    assert len(images.table) == 24 and set(images.table["class"]) == set(range(6))


def test_quality_is_shown_as_a_table(dream):
    shown = dream.quality._repr_html_()
    assert shown.count("<tr") == 1 + len(dream.quality.table) and "zero" in shown
