"""A detector of numbers that turn, by four losses: `python -m examples.oriented`.

Three of scikit-learn's handwritten digits side by side, enlarged and turned by any
angle, on textures. One cell of a coarse grid answers for the number whose centre it
holds, with a score and a box (cx, cy, w, h, angle). The same network learns from the
exact overlap of boxes that turn, from two distances of Gaussians, and from differences
of what describes the boxes; suppression and average precision use the exact overlap.

Single digits are nearly as wide as high: turning such a box hardly changes its overlap,
and no loss of the overlap, exact or Gaussian, learned their angles in short runs.
"""

import dataclasses
import functools
import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from PIL import Image
from tqdm import tqdm

import jaxiou
from benchmarks.report import markdown

from .detector import digits
from .detector.model import ConvNorm, Stage
from .page import PAGE, fill, head, heading, read

SIZE, STRIDE = digits.SIZE, 8
CELLS = SIZE // STRIDE
MOST = 3  # numbers in an image
DIGITS = 3  # of a number
SIDES = (36, 60)  # pixels, the longer side of a number's box
TYPICAL = 32.0  # pixels, the side of a box whose number is 0
THRESHOLDS = np.arange(0.5, 0.96, 0.05)


def differences(boxes, targets):
    """Smooth L1 of encoded boxes; an angle and half a turn more are far apart."""

    def encoded(x):
        return jnp.concatenate(
            [x[..., :2] / STRIDE, jnp.log(x[..., 2:4] / TYPICAL), x[..., 4:]], -1
        )

    return optax.losses.huber_loss(encoded(boxes), encoded(targets)).sum(-1)


def of(measure):
    return functools.partial(jaxiou.box_loss, measure=measure)


LOSSES = {
    "rotated IoU": of(jaxiou.rotated_iou),
    "KLD": of(jaxiou.similarity(jaxiou.kld_distance, log=True)),
    "ProbIoU": of(jaxiou.probiou),
    "smooth L1": differences,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains one small detector per loss, and compares them."""

    losses: str = ",".join(LOSSES)
    """Names of losses, separated by commas."""
    steps: int = 1500
    """Steps of training, of 16 images each."""
    images: int = 2000
    """Images to train with; a quarter as many to test with."""
    width: int = 32
    """Channels of the network."""
    seed: int = 0
    """Draws images and weights."""
    out: Path = Path("docs/oriented")
    """Where `oriented.json` and the picture go."""
    tables: bool = False
    """Train nothing; write the table of `out` into docs/turned.md."""


def number(rng, choices):
    """The opacity of some digits of one height side by side, cropped to the ink."""
    glyphs, _ = digits._glyphs()
    height, gap = 120, 8
    row = []
    for glyph in (glyphs[k] for k in rng.choice(choices, DIGITS)):
        wide = max(1, round(glyph.width * height / glyph.height))
        scaled = np.asarray(glyph.resize((wide, height), Image.Resampling.BILINEAR))
        row += [scaled, np.zeros((height, gap), np.uint8)]
    return Image.fromarray(np.concatenate(row[:-1], 1))


def compose(rng, choices):
    """An image `(SIZE, SIZE, 3)` and the boxes `(n, 5)` of its numbers."""
    image = digits._texture(rng)
    taken = np.zeros((SIZE, SIZE), bool)
    boxes, wanted = [], rng.integers(1, MOST + 1)
    for _ in range(8 * wanted):
        glyph = number(rng, choices)
        scale = rng.uniform(*SIDES) / max(glyph.size)
        w, h = (max(round(side * scale), 1) for side in glyph.size)
        angle = rng.uniform(-math.pi, math.pi)
        # Pillow turns the other way, and the picture grows to hold all of it.
        turned = glyph.resize((w, h), Image.Resampling.BILINEAR).rotate(
            -math.degrees(angle), Image.Resampling.BILINEAR, expand=True
        )
        wide, high = turned.size
        if max(wide, high) > SIZE:
            continue
        x, y = rng.integers(0, SIZE - wide + 1), rng.integers(0, SIZE - high + 1)
        window = np.s_[y : y + high, x : x + wide]
        if taken[window].any():
            continue
        taken[window] = True
        alpha = np.asarray(turned, np.float32)[..., None] / 255
        image[window] += alpha * (digits._colour(rng, image[window]) - image[window])
        boxes.append((x + wide / 2, y + high / 2, w, h, angle))
        if len(boxes) == wanted:
            break
    image += rng.normal(0, rng.uniform(0, 8), image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), np.array(boxes)


def dataset(split, count, seed):
    """Images, boxes padded to `(count, MOST, 5)`, the longer side first, and a mask."""
    stream = list(digits.SHARES).index(split)
    images, boxes = np.zeros((count, SIZE, SIZE, 3), np.uint8), []
    mask = np.zeros((count, MOST), bool)
    for i in range(count):
        rng = np.random.default_rng((seed, stream, i))
        images[i], found = compose(rng, digits.samples()[split])
        mask[i, : len(found)] = True
        boxes.append(np.pad(found, ((0, MOST - len(found)), (0, 0))))
    turned = jaxiou.convert_angle(np.float32(boxes), "radians", "le90")
    return images, np.asarray(turned), mask


class Network(nnx.Module):
    """Images in, logits `(b, cells)` and boxes `(b, cells, 5)` out."""

    def __init__(self, width, *, rngs):
        self.stem = nnx.Conv(3, width // 2, (3, 3), strides=2, rngs=rngs)
        self.stages = nnx.List(
            [
                Stage(width // 2, width, 1, rngs=rngs),
                Stage(width, 2 * width, 2, rngs=rngs),
            ]
        )
        self.tower = ConvNorm(2 * width, 2 * width, rngs=rngs)
        small = nnx.initializers.normal(0.01)
        self.last = nnx.Conv(2 * width, 7, (1, 1), kernel_init=small, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.stem(images.astype(jnp.float32) / 127.5 - 1))
        for stage in self.stages:
            x = stage(x)
        out = self.last(nnx.relu(self.tower(x))).reshape(len(images), -1, 7)
        middle = (jnp.arange(CELLS) + 0.5) * STRIDE
        places = jnp.stack(jnp.meshgrid(middle, middle), -1).reshape(1, -1, 2)
        sides = TYPICAL * jnp.exp(jnp.clip(out[..., 3:5], -3, 3))
        # Half the direction of two numbers: half a turn more is the same box, and the
        # same numbers.
        angle = jnp.arctan2(out[..., 6:], 1 + out[..., 5:6]) / 2
        boxes = [places + STRIDE * out[..., 1:3], sides, angle]
        return out[..., 0], jnp.concatenate(boxes, -1)


@functools.partial(nnx.jit, static_argnames="loss")
def train_step(model, optimizer, images, targets, mask, loss):
    """One step; returns the sum of both losses per number."""

    def total(model):
        logits, boxes = model(images)
        column, row = jnp.moveaxis(targets[..., :2] // STRIDE, -1, 0).astype(jnp.int32)
        cell = jnp.where(mask, row * CELLS + column, 0)
        held = jax.vmap(lambda where, mask: jnp.zeros(CELLS**2).at[where].max(mask))(
            cell, mask.astype(jnp.float32)
        )
        scores = optax.sigmoid_binary_cross_entropy(logits, held).sum()
        chosen = jnp.take_along_axis(boxes, cell[..., None], 1)
        # Padding has neither value nor gradient.
        errors = loss(jnp.where(mask[..., None], chosen, 1.0),
                      jnp.where(mask[..., None], targets, 1.0))  # fmt: skip
        return (scores + 2 * jnp.sum(errors, where=mask)) / jnp.sum(mask)

    value, gradients = nnx.value_and_grad(total)(model)
    optimizer.update(model, gradients)
    return value


@nnx.jit
def detect(model, images):
    """Boxes `(b, 16, 5)`, scores and what of them counts, after suppression."""

    def one(logits, boxes):
        kept, valid = jaxiou.nms(
            boxes,
            logits,
            threshold=0.2,
            max_outputs=16,
            measure=jaxiou.rotated_iou,
        )
        return boxes[kept], jax.nn.sigmoid(logits[kept]), valid

    return jax.vmap(one)(*model(images))


def average_precision(hits, scores, wanted):
    """Area under precision over recall, precision made to fall."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    precision = found / np.arange(1, len(found) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((precision * hits[order]).sum() / wanted)


def apart(box, target):
    """The angle between the longer sides of two boxes.

    A box whose sides are exchanged and that is turned by 90° is the same box.
    """
    ends = [angle + math.pi / 2 * (h > w) for *_, w, h, angle in (box, target)]
    return abs((ends[0] - ends[1] + math.pi / 2) % math.pi - math.pi / 2)


def evaluate(model, images, targets, mask):
    """Average precision by exact overlap, and the median error of angles in degrees."""
    hits, scores, errors = [], [], []
    overlap = jax.jit(functools.partial(jaxiou.pairwise, measure=jaxiou.rotated_iou))
    for first in range(0, len(images), 50):
        part = np.s_[first : first + 50]
        boxes, confidence, valid = map(np.asarray, detect(model, images[part]))
        matrix = np.where(
            mask[part, None, :], np.asarray(overlap(boxes, targets[part])), 0
        )
        for i, j in np.argwhere(valid):  # in every image by falling score
            best = matrix[i, j].argmax()
            hits.append(matrix[i, j, best] >= THRESHOLDS)
            scores.append(confidence[i, j])
            if hits[-1][0]:
                errors.append(apart(boxes[i, j], targets[part][i, best]))
            # What was found once, at the lowest threshold, cannot be found again.
            matrix[i, :, best] *= ~hits[-1][0]
    precision = [
        average_precision(hit, np.array(scores), mask.sum()) for hit in np.array(hits).T
    ]
    return {
        "AP": float(np.mean(precision)),
        "AP50": precision[0],
        "AP75": precision[5],
        "AP90": precision[8],
        "degrees": math.degrees(np.median(errors)) if errors else None,
    }


def learn(name, config, train, test):
    """A trained network, and a row of results."""
    model = Network(config.width, rngs=nnx.Rngs(config.seed))
    rate = optax.cosine_onecycle_schedule(config.steps, 3e-3)
    update = optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(rate))
    optimizer = nnx.Optimizer(model, update, wrt=nnx.Param)
    rng, began = np.random.default_rng(config.seed), time.perf_counter()
    for _ in tqdm(range(config.steps), desc=name, leave=False):
        chosen = rng.integers(0, len(train[0]), 16)
        train_step(model, optimizer, *(x[chosen] for x in train), LOSSES[name])
    seconds = time.perf_counter() - began
    return model, evaluate(model, *test) | {"seconds": seconds}


def draw(path, images, targets, mask, found):
    """Test images with the boxes of numbers, white, and what was found, in colour."""
    figure = Figure(figsize=(2.2 * len(images), 2.3 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), len(images), squeeze=False)
    for row, (name, (boxes, scores, valid)) in zip(grid, found.items(), strict=True):
        row[0].set_ylabel(name)
        for i, axes in enumerate(row):
            axes.imshow(images[i])
            axes.set(xticks=[], yticks=[])
            seen = boxes[i][valid[i] & (scores[i] > 0.5)]
            for corners in np.asarray(jaxiou.corners(targets[i][mask[i]])):
                axes.add_patch(Polygon(corners, fill=False, ec="white", lw=2.5))
            for corners in np.asarray(jaxiou.corners(seen)):
                axes.add_patch(Polygon(corners, fill=False, ec="C1", lw=1.2))
    figure.savefig(path, dpi=110)


def table(results):
    """The results as Markdown, and where they are from."""
    keys = ("AP", "AP50", "AP75", "AP90")
    rows = [
        [name, *(f"{row[key]:.3f}" for key in keys),
         f"{row['degrees'] or 90:.1f}°", f"{row['seconds']:.0f}"]
        for name, row in results["losses"].items()
    ]  # fmt: skip
    made = markdown(["loss", *keys, "median error of the angle", "s"], rows)
    picture = "![Numbers in white, what was found in colour](oriented/oriented.png)"
    return "\n\n".join([made, picture, heading(results["head"])])


def run(config, arguments=None):
    """Trains, measures, writes `oriented.json` and `oriented.png`."""
    names = config.losses.split(",")
    if unknown := set(names) - set(LOSSES):
        raise SystemExit(f"--losses: {sorted(unknown)} unknown; there are {[*LOSSES]}.")
    train = dataset("train", config.images, config.seed)
    test = dataset("test", max(8, config.images // 4), config.seed)
    results = {"head": head("examples.oriented", arguments), "losses": {}}
    found = {}
    for name in names:
        model, row = learn(name, config, train, test)
        results["losses"][name] = row
        found[name] = [np.asarray(x) for x in detect(model, test[0][:6])]
        print(name, {k: v and round(v, 3) for k, v in row.items()}, flush=True)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "oriented.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(config.out / "oriented.png", *(x[:6] for x in test), found)
    print(table(results))
    return results


def main():
    config = tyro.cli(Config, prog="python -m examples.oriented")
    if config.tables:
        results = read(config.out / "oriented.json")
        fill({"oriented": results and table(results)}, PAGE.with_name("turned.md"))
    else:
        run(config)


if __name__ == "__main__":
    main()
