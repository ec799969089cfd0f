"""What notebooks show of the artifacts of an imagination: a sheet of images, a table."""

from __future__ import annotations

import io

import pandas as pd
from PIL import Image

from openood_dream.datasets.reading import read_image
from openood_dream.dream.findings import quality_table
from openood_dream.dream.image_set import read_images
from openood_dream.store.artifacts import Artifact

ROWS, COLUMNS, CELL = 10, 10, 64  # classes, images of each, and pixels a side


class ImageSet(Artifact):
    """The artifact of the stage images, as a notebook shows it: a row of images for each of the first classes."""

    @classmethod
    def of(cls, artifact: Artifact) -> ImageSet:
        """The same artifact with the pictures of a notebook."""
        return cls(artifact.path, artifact.manifest, artifact.reused)

    @property
    def table(self) -> pd.DataFrame:
        """A row per image: file, label, class, the number of its embedding, seed, distance, sha256."""
        return read_images(self.path)

    def sheet(self) -> Image.Image:
        """The first images of the first classes on one sheet, a row per class."""
        rows = [list(files.head(COLUMNS)) for _, files in self.table.groupby("class", sort=True)["file"]][:ROWS]
        sheet = Image.new("RGB", (CELL * max(map(len, rows)), CELL * len(rows)))
        for row, files in enumerate(rows):
            for column, file in enumerate(files):
                cell = read_image(self.path / file).resize((CELL, CELL), Image.Resampling.BICUBIC)
                sheet.paste(cell, (column * CELL, row * CELL))
        return sheet

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.sheet().save(buffer, "PNG")
        return buffer.getvalue()


class Findings(Artifact):
    """The artifact of the stage quality, as a notebook shows it: a table with a row per class."""

    @classmethod
    def of(cls, artifact: Artifact) -> Findings:
        """The same artifact with the table of a notebook."""
        return cls(artifact.path, artifact.manifest, artifact.reused)

    @property
    def table(self) -> pd.DataFrame:
        """A row per class: images kept and drawn, shares in percent, distances, duplicates."""
        return quality_table(self)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format="{:.3g}".format)
