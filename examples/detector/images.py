"""Pictures on disk as people see them: turned as their cameras say, or refused."""

import contextlib
import os

import numpy as np
from PIL import Image, ImageOps

from .records import DataError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


@contextlib.contextmanager
def opened(path):
    """An image file; whatever is wrong with it names it."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from None


def image_size(path):
    """The height and width of an image, read from its header.

    A file that was cut off is found here, before anything is trained.
    """
    with opened(path) as image:
        turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
        size = image.size if turned else image.size[::-1]
        # All of it is read only where the end is not what it should be.
        if not _ends(path, _ENDS.get(image.format)):
            image.load()
        return size


def _ends(path, end):
    """Whether a file ends as its format wants; no format, no answer."""
    if end is None or path.stat().st_size < len(end):
        return False
    with open(path, "rb") as file:
        file.seek(-len(end), os.SEEK_END)
        return file.read() == end


def read_image(record):
    """The pixels of a record, `(height, width, 3)` uint8."""
    if isinstance(record.image, np.ndarray):
        return record.image
    with opened(record.image) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F"):
            raise ValueError("32 bits a pixel; make them 8 or 16")
        if image.mode.startswith("I;16"):  # which `convert` would cut off
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(image.convert("RGB"))
