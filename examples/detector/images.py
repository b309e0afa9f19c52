"""Pictures on disk as people see them: turned as their cameras say, or refused."""

import contextlib

import numpy as np
from PIL import Image, ImageOps

from .records import DataError

_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF


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
    """The height and width of an image, read from its header."""
    with opened(path) as image:
        turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
        return image.size if turned else image.size[::-1]


def read_image(record):
    """The pixels of a record, `(height, width, 3)` uint8."""
    if isinstance(record.image, np.ndarray):
        return record.image
    with opened(record.image) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
