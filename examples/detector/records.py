"""What every data set is turned into: images with labelled boxes, in three splits."""

import dataclasses
from pathlib import Path

import numpy as np


class DataError(ValueError):
    """Something is wrong with a file of a data set; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One image and its boxes.

    `image` holds the pixels or says where they are; `size` is its height and width.
    `boxes` are `(n, 4)` float32 `xyxy` in pixels of the image, `labels` are `(n,)`
    indices of classes, and `ignore` `(n,)` marks boxes that are neither to be found
    nor to be held against the detector: crowds and difficult objects. `outlines` has
    the pixels of each box as COCO writes them, polygons or runs, where there are any.
    """

    name: str
    image: Path | np.ndarray
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    outlines: tuple = ()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The records of each split, the names of the classes, and what may be varied.

    `notes` are lines worth printing: what was left out, where splits come from. Where
    there is but one split, `held_out` images of it serve as the others.
    """

    classes: tuple[str, ...]
    train: list[Record]
    val: list[Record]
    test: list[Record]
    photographs: bool
    notes: tuple[str, ...] = ()
    held_out: bool = False

    def most_boxes(self):
        """The largest number of boxes in a training image: targets are padded to it."""
        return max(1, *(len(record.boxes) for record in self.train))
