"""From records to the arrays of a training step: loading, fitting, varying, padding."""

import dataclasses

import grain
import numpy as np
from absl import flags
from PIL import Image

from .digits import SIZE, digits
from .images import read_image
from .readers import read_coco, read_voc
from .records import DataError, Dataset

LONGER_SIDE = 320  # of photographs, by default
CACHE_BYTES = 1 << 30  # decoded images kept in memory
SCALES = (0.9, 1.3)  # how far images are shrunk and enlarged at random
MOST_VISIBLE = 0.4  # a box cut to less than this share of itself is ignored


def load(config):
    """The data set that `config.data` names."""
    kind, _, rest = config.data.partition(":")
    if config.data == "digits":
        classes = tuple("0123456789")
        counts = (config.digit_images, 100, 400)
        splits = zip(("train", "val", "test"), counts, strict=True)
        records = (digits(split, count, config.seed) for split, count in splits)
        return Dataset(classes, *records, photographs=False)
    if kind == "coco" and rest:
        annotations, _, images = rest.partition(":")
        return read_coco(annotations, images or None, config.skip_faulty)
    if kind == "voc" and rest:
        return read_voc(rest, config.skip_faulty)
    raise DataError(
        f"--data {config.data}: expected digits, coco:annotations.json[:images/] "
        "or voc:folder"
    )


def completed(config, dataset):
    """The choices of a run, those that nobody made as the data want them."""
    if all(record.ignore.all() for record in dataset.train):
        raise DataError(f"--data {config.data}: there is no training image with a box")
    return dataclasses.replace(
        config,
        batch_size=config.batch_size or (8 if dataset.photographs else 16),
        image_size=config.image_size or typical_size(dataset),
    )


def typical_size(dataset):
    """Height and width of the typical photograph, its longer side as above."""
    if not dataset.photographs:
        return SIZE, SIZE
    sizes = np.array([record.size for record in dataset.train])
    height, width = np.median(sizes / sizes.max(1, keepdims=True), axis=0)
    sides = (round(LONGER_SIDE * side / 32) * 32 for side in (height, width))
    return tuple(max(side, 32) for side in sides)


def fit(image, size):
    """Scales an image to fit into `size` and pads it at the right and the bottom.

    Returns the padded image and the factors `(x, y)` that its boxes are multiplied by.
    Padding on two sides only keeps the origin, so boxes are scaled and never shifted.
    """
    (height, width), (rows, columns) = image.shape[:2], size
    scale = min(rows / height, columns / width)
    h, w = max(round(height * scale), 1), max(round(width * scale), 1)
    canvas = np.zeros((rows, columns, 3), np.uint8)
    if (h, w) != (height, width):
        resized = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    canvas[:h, :w] = image
    return canvas, np.array([w / width, h / height], np.float32)


def flip(image, boxes):
    """Mirrors an image and its boxes left to right."""
    width = image.shape[1]
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    return image[:, ::-1], np.stack([width - x2, y1, width - x1, y2], -1)


def move(image, scale, shift, how=Image.Resampling.BILINEAR, fill=0):
    """Maps every point `p` of an image to `scale * p + shift`."""
    (height, width), (dx, dy) = image.shape[:2], shift
    inverse = (1 / scale, 0, -dx / scale, 0, 1 / scale, -dy / scale)
    kind = Image.Transform.AFFINE
    moved = Image.fromarray(image).transform(
        (width, height), kind, inverse, how, fillcolor=fill
    )
    return np.asarray(moved)


def draw_zoom(rng, size):
    """A random scale and shift of an image of this height and width."""
    scale = np.exp(rng.uniform(*np.log(SCALES)))
    return scale, rng.uniform(0, 1, 2) * (1 - scale) * np.array(size[::-1])


def zoom(image, boxes, scale, shift):
    """Maps every point `p` of an image and its boxes to `scale * p + shift`.

    Returns the image, the boxes clipped to it, and the share of each that stayed.
    """
    (height, width), (dx, dy) = image.shape[:2], shift
    moved = move(image, scale, shift)
    boxes = scale * boxes + np.array([dx, dy, dx, dy], np.float32)
    inside = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    sides, kept = boxes[:, 2:] - boxes[:, :2], inside[:, 2:] - inside[:, :2]
    return moved, inside, (kept / sides).prod(1)


def relight(image, rng):
    """Changes brightness and contrast, a little differently in each channel."""
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.9, 1.1, (3, 1))
    table = (np.arange(256) - 128) * gain + 128 + rng.uniform(-24, 24)
    table = np.clip(np.round(table), 0, 255).astype(int).ravel().tolist()
    return np.asarray(Image.fromarray(image).point(table))


def vary(image, boxes, ignore, rng, *, flips):
    """A random variation of an image; boxes of which little is left become ignored."""
    if flips and rng.random() < 0.5:
        image, boxes = flip(image, boxes)
    image, boxes, share = zoom(image, boxes, *draw_zoom(rng, image.shape[:2]))
    return relight(image, rng), boxes, ignore | (share < MOST_VISIBLE)


class Batches:
    """The batches of a training run; the one of a step depends on nothing but the step.

    Each is a dictionary of `images` `(b, height, width, 3)` uint8, and of `boxes`
    `(b, m, 4)`, `labels`, `where` and `ignore` `(b, m)`, padded to the same `m`. Of
    several processes each makes an equal `share`, `(its number, their count)`.
    """

    def __init__(self, dataset, size, batch_size, seed, share=(0, 1), augment=True):
        self.dataset, self.size, self.seed, self.kept = dataset, size, seed, {}
        self.padding, self.augment = dataset.most_boxes(), augment
        # Every epoch is a fresh permutation; each draw has a generator of its own.
        draws = grain.MapDataset.range(len(dataset.train)).seed(seed).shuffle()
        process, count = share
        own = draws.repeat().random_map(self.example)[process::count]
        self.steps = own.batch(batch_size // count)

    def __call__(self, step):
        """The batch of one step."""
        return self.steps[step]

    def run(self, first, last, workers=0):
        """Yields the batches of steps, prepared by threads or `workers` processes."""
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        batches = self.steps[first:last].to_iter_dataset(options)
        if workers:
            flags.FLAGS.mark_as_parsed()  # Grain asks for its own; tyro reads ours
            processes = grain.MultiprocessingOptions(num_workers=workers)
            batches = batches.mp_prefetch(processes)
        return iter(batches)

    def example(self, index, rng):
        """One image with all of its boxes, varied unless told otherwise."""
        record, (image, factors) = self.dataset.train[index], self.fitted(index)
        boxes, ignore = record.boxes * np.tile(factors, 2), record.ignore
        if self.augment:
            flips = self.dataset.photographs
            image, boxes, ignore = vary(image, boxes, ignore, rng, flips=flips)

        def padded(values, dtype):
            missing = [(0, self.padding - len(values)), *[(0, 0)] * (values.ndim - 1)]
            return np.pad(values, missing).astype(dtype)

        return {
            "images": image,
            "boxes": padded(boxes, np.float32),
            "labels": padded(record.labels, np.int32),
            "where": padded(np.ones(len(boxes), bool), bool),
            "ignore": padded(ignore, bool),
        }

    def fitted(self, index):
        """An image in the size of the network; as many as memory holds stay there."""
        if index in self.kept:
            return self.kept[index]
        pair = fit(read_image(self.dataset.train[index]), self.size)
        if (len(self.kept) + 1) * pair[0].nbytes <= CACHE_BYTES:
            self.kept[index] = pair
        return pair
