"""Images that need no download: real handwritten digits on textured backgrounds.

scikit-learn brings 1,797 digits that people wrote, as 8 x 8 pixels. They are enlarged
smoothly, coloured, and pasted over each other at random places and sizes. Training,
validation and test images are composed from different handwritten samples.
"""

import functools

import numpy as np
from faster_coco_eval.core.mask import encode
from PIL import Image
from sklearn.datasets import load_digits

from .records import Record

SIZE = 96  # pixels, both sides
SIDES = (16, 44)  # pixels, the longer side of a digit's box
MOST_DIGITS = 8
MOST_COVERED = 0.25  # of a digit, by all later ones together
SHARES = {"train": 1297, "val": 150, "test": 350}  # of the 1,797 samples
INK = 0.4  # opacity from which a pixel counts as ink


@functools.cache
def samples():
    """The handwritten samples of each split, as `{split: indices}`."""
    order = np.random.default_rng(0).permutation(sum(SHARES.values()))
    ends = np.cumsum(list(SHARES.values()))
    return dict(zip(SHARES, np.split(order, ends[:-1]), strict=True))


@functools.cache
def _glyphs():
    """Each sample's opacity as a large picture cropped to its ink; all the labels."""
    digits = load_digits()
    glyphs = []
    for image in digits.images:
        large = Image.fromarray(np.pad(image / 16, 1).astype(np.float32))
        alpha = np.asarray(large.resize((160, 160), Image.Resampling.BICUBIC))
        # The faintest ink is none, which keeps the boxes tight.
        alpha = np.round(255 * np.clip((alpha - 0.2) / 0.6, 0, 1)).astype(np.uint8)
        glyph = Image.fromarray(alpha)
        glyphs.append(glyph.crop(glyph.getbbox()))
    return glyphs, digits.target


def _texture(rng):
    """A background: coarse and fine noise around a random colour."""
    image = np.full((SIZE, SIZE, 3), rng.uniform(40, 215, 3), np.float32)
    for cells, strength in ((3, 40), (12, 25), (48, 20)):
        noise = rng.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        smooth = Image.fromarray(noise).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        image += rng.uniform(0, strength) * (np.asarray(smooth, np.float32) / 128 - 1)
    return image


def _colour(rng, background):
    """A colour whose brightness differs visibly from the mean of `background`."""
    brightness = background.mean()
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(colour.mean() - brightness) > 50:
            return colour


def _visible(owner, counts):
    """Whether every digit still shows enough of itself in a map of topmost digits."""
    shown = np.bincount(owner.ravel() + 1, minlength=len(counts) + 1)[1:]
    return (shown >= (1 - MOST_COVERED) * np.array(counts)).all()


def compose(rng, choices, background=_texture):
    """Composes one image from the samples whose indices are `choices`.

    Returns the image, the boxes and labels of the digits in the order they were pasted,
    the share of each digit's ink that stayed visible, and whose ink each pixel shows,
    -1 for nobody's. Coverage is limited twice, as a share of a digit's box under later
    boxes and of its ink under later ink.
    """
    glyphs, targets = _glyphs()
    image = background(rng)
    boxes, labels = [], []
    owners = [np.full((SIZE, SIZE), -1) for _ in range(2)]  # topmost box, topmost ink
    counts = [[], []]
    wanted = rng.integers(1, MOST_DIGITS + 1)
    for _ in range(6 * wanted):  # crowded images may end with fewer digits than wanted
        sample = rng.choice(choices)
        glyph = glyphs[sample]
        scale = rng.integers(SIDES[0], SIDES[1] + 1) / max(glyph.size)
        w, h = (max(round(side * scale), 1) for side in glyph.size)
        x, y = rng.integers(0, SIZE - w + 1), rng.integers(0, SIZE - h + 1)
        window = np.s_[y : y + h, x : x + w]
        resized = glyph.resize((w, h), Image.Resampling.BILINEAR)
        alpha = np.asarray(resized, np.float32) / 255
        trial = [owner.copy() for owner in owners]
        trial[0][window] = len(boxes)
        trial[1][window][alpha > INK] = len(boxes)
        sizes = [w * h, int((alpha > INK).sum())]
        after = [[*count, size] for count, size in zip(counts, sizes, strict=True)]
        if not all(map(_visible, trial, after)):
            continue
        owners, counts = trial, after
        alpha = alpha[..., None] * rng.uniform(0.85, 1)
        image[window] += alpha * (_colour(rng, image[window]) - image[window])
        boxes.append((x, y, x + w, y + h))
        labels.append(targets[sample])
        if len(boxes) == wanted:
            break
    image += rng.normal(0, rng.uniform(0, 8), image.shape)
    image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    shown = np.bincount(owners[1].ravel() + 1, minlength=len(boxes) + 1)[1:]
    boxes, labels = np.array(boxes, np.float32), np.array(labels)
    return image, boxes, labels, shown / counts[1], owners[1]


def digits(split, count, seed, background=_texture, kinds=10):
    """`count` records of the split `train`, `val` or `test`, of the first digits."""
    choices = samples()[split]
    choices = choices[_glyphs()[1][choices] < kinds]
    stream = list(SHARES).index(split)
    records = []
    for i in range(count):
        rng = np.random.default_rng((seed, stream, i))
        image, boxes, labels, _, owner = compose(rng, choices, background)
        name, size, ignore = f"{split}-{i}", (SIZE, SIZE), np.zeros(len(boxes), bool)
        ink = owner[..., None] == np.arange(len(boxes))
        outlines = tuple(encode(np.asfortranarray(ink, np.uint8)))
        records.append(Record(name, image, size, boxes, labels, ignore, outlines))
    return records
