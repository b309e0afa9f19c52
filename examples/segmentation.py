"""Which loss for pixel masks? `python -m examples.segmentation --help`.

Trains a small U-Net (Flax NNX, Optax) to name the class of every pixel, with losses
that differ in kind and several seeds each. Without an argument the images are real
handwritten digits on crops of two photographs, all of which come with scikit-learn;
`--data coco:annotations.json` takes polygons. Runs of one seed start from the same
weights and see the same batches, so losses are compared within a seed.
"""

import dataclasses
import functools
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from faster_coco_eval.core import mask as coco
from flax import nnx
from PIL import Image
from sklearn.datasets import load_sample_image
from tqdm import tqdm

import jaxiou
from benchmarks.report import markdown

from .detector import data
from .detector.config import Config as Choices
from .detector.digits import SIZE, digits
from .detector.model import ConvNorm, Stage
from .detector.records import DataError, Dataset
from .detector.state import schedule
from .loss_study import paired, save, spread, verdict
from .page import PAGE, fill, head, heading, read

MASKS = PAGE.with_name("masks.md")
VOID = 255  # pixels that do not count: padding, crowds
BACKGROUNDS = {"train": slice(0, 400), "test": slice(440, 640)}  # columns
TEST_DIGITS = 300  # images
KINDS = 3  # of digits, from 0: all ten take longer to tell apart
CROPS = (96, 240)  # pixels of a photograph that become the side of an image
BATCH = 16  # images in a step of evaluation
SHOWN = 6  # test images in the pictures

# Losses of logits `(b, h, w, classes)` and labels `(b, h, w)`, void where 255.


def cross_entropy(logits, labels):
    """The mean over the pixels that count."""
    counts = labels != VOID
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(counts, labels, 0)
    )
    return losses.sum(where=counts) / jnp.maximum(counts.sum(), 1)


def by_class(loss, logits, labels):
    """The mean over the classes that occur of a loss of the whole batch."""
    probabilities, axes = jax.nn.softmax(logits), (0, 1, 2)
    targets = jax.nn.one_hot(labels, logits.shape[-1])  # of void all 0
    where = (labels != VOID)[..., None]
    losses = loss(probabilities, targets, axis=axes, where=where)
    present = targets.any(axes)
    return losses.sum(where=present) / jnp.maximum(present.sum(), 1)


jaccard = functools.partial(by_class, jaxiou.jaccard_loss)
dice = functools.partial(by_class, jaxiou.dice_loss)
lovasz = functools.partial(by_class, jaxiou.lovasz_softmax)


def cross_entropy_and_jaccard(logits, labels):
    """Their sum: a slope everywhere, and the measure itself."""
    return cross_entropy(logits, labels) + jaccard(logits, labels)


LOSSES = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "jaccard": jaccard,
    "lovasz": lovasz,
    "cross_entropy+jaccard": cross_entropy_and_jaccard,
}
REFERENCE = "cross_entropy"
METRICS = ("mIoU", "mIoU per image", "accuracy")


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a U-Net with every loss and seed; runs already made stay."""

    data: str = "digits"
    """`digits`, or `coco:annotations.json[:images/]` with polygons."""
    name: str | None = None
    """What the data are called; by default `digits` or the file of annotations."""
    losses: str = ",".join(LOSSES)
    """Names of losses, separated by commas."""
    seeds: int = 3
    """How many runs of each."""
    steps: int = 300
    """Training steps of a run."""
    batch_size: int = 16
    """Images in a step."""
    image_size: tuple[int, int] | None = None
    """Height and width that images are scaled to, multiples of 16; by default 96 x 96
    for digits, and for photographs their typical shape with a longer side of 320."""
    window: int = 64
    """Side of the squares that are cut out of the images to learn from, a multiple of
    16; images that are smaller stay as they are."""
    width: int = 16
    """Channels at half resolution; they double with every halving."""
    learning_rate: float = 5e-3
    """The highest learning rate: a short warm-up leads to it, a cosine away from it."""
    digit_images: int = 2000
    """How many training images to compose out of the handwritten digits."""
    out: Path = Path("docs/masks")
    """Where `runs.json` and the pictures go."""
    tables: bool = False
    """Train nothing; write the tables of `out` into docs/masks.md."""


# Images and labels


def photograph(split):
    """Draws crops of scikit-learn's two photographs, from columns of the split."""
    names = ("china.jpg", "flower.jpg")
    images = [load_sample_image(name)[:, BACKGROUNDS[split]] for name in names]

    def draw(rng):
        image = images[rng.integers(len(images))]
        side = rng.integers(CROPS[0], min(CROPS[1], *image.shape[:2]) + 1)
        y, x = (rng.integers(0, size - side + 1) for size in image.shape[:2])
        crop = Image.fromarray(image[y : y + side, x : x + side])
        small = crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return np.asarray(small, np.float32).copy()

    return draw


def load(config):
    """The data set that `config.data` names."""
    if config.data != "digits":
        return data.load(Choices(data=config.data))
    splits = {"train": config.digit_images, "test": TEST_DIGITS}
    train, test = (
        digits(split, count, 0, photograph(split), KINDS)
        for split, count in splits.items()
    )
    return Dataset(tuple("0123456789"[:KINDS]), train, [], test, photographs=False)


def label(record):
    """The class of every pixel of a record, 0 the background; smaller boxes on top."""
    labels = np.zeros(record.size, np.uint8)
    sides = record.boxes[:, 2:] - record.boxes[:, :2]
    for index in np.argsort(-sides.prod(1), kind="stable"):
        outline = record.outlines[index]
        if not outline:
            raise DataError(f"{record.name}: a box without polygon, and masks need one")
        runs = outline
        if isinstance(outline, list) or isinstance(outline["counts"], list):
            runs = coco.frPyObjects(outline, *record.size)
        if isinstance(runs, list):
            runs = coco.merge(runs)
        kind = VOID if record.ignore[index] else 1 + record.labels[index]
        labels[coco.decode(runs) == 1] = kind
    return labels


def fit(record, size):
    """The image and the labels of a record, scaled to fit; padding is void."""
    image, factors = data.fit(data.read_image(record), size)
    labels = label(record)
    w, h = np.rint(factors * labels.shape[::-1]).astype(int)
    scaled = Image.fromarray(labels).resize((w, h), Image.Resampling.NEAREST)
    canvas = np.full(size, VOID, np.uint8)
    canvas[:h, :w] = scaled
    return image, canvas


def vary(image, labels, rng, *, flips, window):
    """A window of a random variation of an image, and its labels moved alike."""
    if flips and rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    zoom = data.draw_zoom(rng, labels.shape)
    labels = data.move(labels, *zoom, Image.Resampling.NEAREST, VOID)
    image = data.relight(data.move(image, *zoom), rng)
    y, x = (rng.integers(0, max(side - window, 0) + 1) for side in labels.shape)
    inside = np.s_[y : y + window, x : x + window]
    return image[inside], labels[inside]


class Batches(data.Batches):
    """The batches of a run, of `images` `(b, h, w, 3)` and `labels` `(b, h, w)`."""

    def __init__(self, dataset, size, batch_size, seed, fitted, window):
        super().__init__(dataset, size, batch_size, seed)
        self.fitted, self.window = fitted, window

    def example(self, index, rng):
        flips = self.dataset.photographs
        image, labels = self.fitted(index)
        image, labels = vary(image, labels, rng, flips=flips, window=self.window)
        return {"images": image, "labels": labels}


# The network


class UNet(nnx.Module):
    """Images `(b, h, w, 3)` in, logits of the classes `(b, h, w, classes)` out.

    Halved and refined down to a sixteenth, doubled again beside what was seen on the
    way. Half the resolution is the finest that convolutions work on: each cell there
    answers for its four pixels.
    """

    def __init__(self, classes, *, width, rngs, halvings=3):
        widths = [width * 2**k for k in range(halvings + 1)]
        down = list(itertools.pairwise(widths))
        self.stem = nnx.Conv(3, width, (3, 3), strides=2, rngs=rngs)
        self.down = nnx.List([Stage(*pair, 1, rngs=rngs) for pair in down])
        self.up = nnx.List(
            [ConvNorm(fine + wide, fine, rngs=rngs) for fine, wide in down[::-1]]
        )
        self.last = nnx.Conv(width, 4 * classes, (1, 1), rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.stem(images.astype(jnp.float32) / 127.5 - 1))
        seen = []
        for stage in self.down:
            seen.append(x)
            x = stage(x)
        for block, fine in zip(self.up, seen[::-1], strict=True):
            doubled = x.repeat(2, axis=1).repeat(2, axis=2)
            x = nnx.relu(block(jnp.concatenate([fine, doubled], axis=-1)))
        return spread_cells(self.last(x))


def spread_cells(cells):
    """The four pixels of every cell, `(b, h, w, 4 k)`, beside each other."""
    b, h, w, _ = cells.shape
    pixels = cells.reshape(b, h, w, 2, 2, -1).swapaxes(2, 3)
    return pixels.reshape(b, 2 * h, 2 * w, -1)


@nnx.jit(static_argnames="loss")
def train_step(model, optimizer, batch, loss):
    """Updates the model and returns the loss."""

    def total(model):
        return loss(model(batch["images"]), batch["labels"])

    value, gradients = nnx.value_and_grad(total)(model)
    optimizer.update(model, gradients)
    return value


def train(config, loss, batches, classes):
    """A model that has seen the batches of all steps."""
    model = UNet(classes, width=config.width, rngs=nnx.Rngs(batches.seed))
    update = optax.adamw(
        schedule(config.steps, config.learning_rate), weight_decay=1e-4
    )
    optimizer = nnx.Optimizer(model, update, wrt=nnx.Param)
    bar = tqdm(
        batches.run(0, config.steps), total=config.steps, leave=False, disable=None
    )
    for batch in bar:
        train_step(model, optimizer, batch, LOSSES[loss])
    return model


# What it has learned


@nnx.jit
def predict(model, images):
    return jnp.argmax(model(images), axis=-1).astype(jnp.uint8)


def find(model, images):
    """The class of every pixel of all images."""
    found = []
    for start in range(0, len(images), BATCH):
        chunk = images[start : start + BATCH]
        # The last one is filled up, so that one compilation serves all of them.
        padding = ((0, BATCH - len(chunk)), (0, 0), (0, 0), (0, 0))
        found.append(predict(model, np.pad(chunk, padding))[: len(chunk)])
    return np.concatenate(found)


def scores(found, wanted, classes):
    """Mean IoU over the classes that occur, of all pixels and image by image.

    And the share of pixels that are right.
    """
    where = wanted != VOID
    total, each, occurs = [], [], []
    for k in range(classes):
        pair = found == k, wanted == k
        total.append(jaxiou.mask_iou(*pair, axis=None, where=where))
        each.append(jaxiou.mask_iou(*pair, axis=(1, 2), where=where))
        occurs.append((wanted == k).any((1, 2)))
    total, each, occurs = map(np.stack, (total, each, occurs))
    by_image = np.sum(each, axis=0, where=occurs) / np.maximum(occurs.sum(0), 1)
    values = (
        np.mean(total, where=occurs.any(1)),
        by_image.mean(),
        (found == wanted)[where].mean(),
    )
    pairs = zip(METRICS, values, strict=True)
    return {name: round(float(value), 4) for name, value in pairs}


def colour(labels):
    """Labels as a picture: the background dark, what does not count white."""
    table = np.full((256, 3), 255, np.uint8)
    table[0] = 40
    named = 255 * np.array(matplotlib.colormaps["tab10"].colors)
    table[1:VOID] = named[np.arange(VOID - 1) % len(named)]
    return table[labels]


def draw_strip(path, images):
    """A few images side by side, in at most 64 colours: pages load many of them."""
    gap = np.full((images.shape[1], 2, 3), 255, np.uint8)
    strip = np.concatenate([x for image in images for x in (image, gap)][:-1], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(strip).quantize(64).save(path, optimize=True)


# The study


def name_of(config):
    kind, _, rest = config.data.partition(":")
    return config.name or Path(rest.partition(":")[0]).stem or kind


def typed(config, name):
    """The arguments that made a run, without the paths of this machine."""
    kind = config.data.partition(":")[0]
    options = [] if kind == "digits" else ["--data", f"{kind}:{name}"]
    for field in ("steps", "batch_size", "image_size", "window"):
        value = getattr(config, field)
        if value != getattr(Config, field):
            values = value if isinstance(value, tuple) else (value,)
            options += [f"--{field.replace('_', '-')}", *values]
    return options


def run(config):
    """Makes the runs that are missing; returns all."""
    dataset, name = load(config), name_of(config)
    size = config.image_size or data.typical_size(dataset)
    classes = 1 + len(dataset.classes)
    memory = data.CACHE_BYTES // (4 * size[0] * size[1])
    fitted = functools.lru_cache(memory)(lambda i: fit(dataset.train[i], size))
    tested = [fit(record, size) for record in dataset.test]
    images, wanted = map(np.stack, zip(*tested, strict=True))
    strips = config.out / f"{name}-{config.steps}"
    draw_strip(strips / "images.png", images[:SHOWN])
    draw_strip(strips / "labels.png", colour(wanted[:SHOWN]))
    path = config.out / "runs.json"
    runs, losses = read(path) or [], config.losses.split(",")
    for seed, loss in ((s, x) for s in range(config.seeds) for x in losses):
        key = {"data": name, "steps": config.steps, "loss": loss, "seed": seed}
        if any(key.items() <= made.items() for made in runs):
            continue
        print(*(f"{k} {v}" for k, v in key.items()), end=": ", flush=True)
        began = time.perf_counter()
        batches = Batches(dataset, size, config.batch_size, seed, fitted, config.window)
        model = train(config, loss, batches, classes)
        found = find(model, images)
        row = scores(found, wanted, classes)
        row["seconds"] = round(time.perf_counter() - began, 1)
        print(row)
        if seed == 0:
            draw_strip(strips / f"{loss}.png", colour(found[:SHOWN]))
        counts = {"images": [len(dataset.train), len(dataset.test)], "size": size}
        origin = head("examples.segmentation", typed(config, name))
        runs.append({**key, **row, "head": {**origin, **counts}})
        save(runs, path)
    return runs


def groups(runs):
    """{(data, steps): {loss: {seed: run}}}"""
    found = {}
    for each in runs:
        group = found.setdefault((each["data"], each["steps"]), {})
        group.setdefault(each["loss"], {})[each["seed"]] = each
    return found


def compared(group):
    """A line per loss: scores, what it differs from the reference, seconds."""
    reference, lines = group.get(REFERENCE, {}), []
    for loss, seeds in group.items():
        line = [f"`{loss}`", *(spread([r[m] for r in seeds.values()]) for m in METRICS)]
        for metric in METRICS[:2]:
            pairs = [{s: r[metric] for s, r in x.items()} for x in (seeds, reference)]
            found = None if seeds is reference else paired(*pairs)
            line.append(
                f"{found[0]:+.3f} ± {found[1]:.3f}, {verdict(*found)}" if found else ""
            )
        seconds = statistics.median(r["seconds"] for r in seeds.values())
        lines.append([*line, str(len(seeds)), f"{seconds:.0f}"])
    differences = (f"Δ {metric}" for metric in METRICS[:2])
    return markdown(["loss", *METRICS, *differences, "runs", "s a run"], lines)


def pictures(folder, losses):
    """The strips of one data set, from top to bottom."""
    named = {"images": "the images", "labels": "the labels"}
    named |= {loss: f"`{loss}`" for loss in losses}
    lines = [[text, f"![{text}]({folder}/{name}.png)"] for name, text in named.items()]
    return markdown(["", "test images, seed 0"], lines)


def tables(runs, folder="masks"):
    """The block of the page."""
    parts = []
    for (name, steps), group in groups(runs or []).items():
        every = [each for seeds in group.values() for each in seeds.values()]
        (train, test), (height, width) = (
            every[0]["head"][k] for k in ("images", "size")
        )
        title = (
            f"**{name}**, {height} × {width}, {train:,} images to learn from and "
            f"{test} to test, {steps} steps."
        )
        origins = dict.fromkeys(heading(each["head"]) for each in every)
        shown = pictures(f"{folder}/{name}-{steps}", group)
        parts += [title, compared(group), *origins, shown]
    return {"segmentation": "\n\n".join(parts)}


def main():
    config = tyro.cli(Config, prog="python -m examples.segmentation")
    if unknown := set(config.losses.split(",")) - set(LOSSES):
        raise SystemExit(
            f"unknown losses {sorted(unknown)}; there are {', '.join(LOSSES)}"
        )
    if config.tables:
        fill(tables(read(config.out / "runs.json")), MASKS)
        return
    # Seeds share their programs: each loss is compiled once.
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        try:
            runs = run(config)
        except DataError as error:
            raise SystemExit(f"error: {error}") from None
    print(tables(runs)["segmentation"])


if __name__ == "__main__":
    main()
