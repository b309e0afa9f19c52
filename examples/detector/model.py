"""The network: a residual backbone, a feature pyramid, and heads shared by its levels.

For every anchor it gives one score per class, as logits, and four numbers that encode
a box relative to the anchor. Everything a box needs comes from jaxiou.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx

import jaxiou

FINEST_STRIDE = 8  # pixels between neighbouring cells of the finest pyramid level
ANCHOR_SIDE = 2.0  # strides
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height over width
ANCHOR_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
PER_CELL = len(ANCHOR_RATIOS) * len(ANCHOR_SCALES)
CANDIDATES = 1000  # the best scores of an image that non-maximum suppression looks at
MOST_DETECTIONS = 100  # in an image, as COCO's average precision counts them


def strides_for(image_size):
    """The strides of the levels, as long as three cells of one fit into an image."""
    levels = max(int(math.log2(min(image_size) / 3 / FINEST_STRIDE)), 0) + 1
    return [FINEST_STRIDE * 2**level for level in range(levels)]


def cells_for(image_size):
    """Rows and columns of the cells of each level."""
    height, width = image_size
    strides = strides_for(image_size)
    return [(math.ceil(height / s), math.ceil(width / s)) for s in strides]


def level_sizes(image_size):
    """How many anchors each level has."""
    return [PER_CELL * rows * columns for rows, columns in cells_for(image_size)]


def anchors_for(image_size):
    """The anchors of an image of this height and width, `(n, 4)`, level by level."""
    strides = strides_for(image_size)
    return jaxiou.anchor_grid(
        cells_for(image_size),
        strides,
        sizes=[ANCHOR_SIDE * stride for stride in strides],
        aspect_ratios=ANCHOR_RATIOS,
        scales=ANCHOR_SCALES,
    )


class ConvNorm(nnx.Module):
    """A convolution and a group normalisation."""

    def __init__(self, inputs, outputs, *, kernel=3, stride=1, dtype=None, rngs):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            strides=stride,
            use_bias=False,
            kernel_init=nnx.initializers.he_normal(),
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = nnx.GroupNorm(outputs, num_groups=8, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class Block(nnx.Module):
    """Two convolutions that refine what they are given."""

    def __init__(self, channels, *, dtype=None, rngs):
        self.first = ConvNorm(channels, channels, dtype=dtype, rngs=rngs)
        self.second = ConvNorm(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(x + self.second(nnx.relu(self.first(x))))


class Stage(nnx.Module):
    """Halves the resolution and refines the result with `depth` blocks."""

    def __init__(self, inputs, outputs, depth, *, dtype=None, rngs):
        self.down = ConvNorm(inputs, outputs, stride=2, dtype=dtype, rngs=rngs)
        blocks = [Block(outputs, dtype=dtype, rngs=rngs) for _ in range(depth)]
        self.blocks = nnx.List(blocks)

    def __call__(self, x):
        x = nnx.relu(self.down(x))
        for block in self.blocks:
            x = block(x)
        return x


class Detector(nnx.Module):
    """Images in, logits `(b, n, classes)` and box deltas `(b, n, 4)` of anchors out.

    Both are float32, also where the network computes in another `dtype`.
    """

    def __init__(self, classes, *, levels, width, depth, dtype=None, remat=False, rngs):
        self.classes, self.remat = classes, remat
        # On full resolution a normalisation would cost more than the convolution.
        self.stem = nnx.Conv(3, width // 4, (3, 3), strides=2, dtype=dtype, rngs=rngs)
        channels = [width // 4, width // 2, width] + (levels - 1) * [2 * width]
        self.stages = nnx.List(
            [
                Stage(inputs, outputs, depth, dtype=dtype, rngs=rngs)
                for inputs, outputs in itertools.pairwise(channels)
            ]
        )
        self.laterals = nnx.List(
            [
                nnx.Conv(inputs, width, (1, 1), dtype=dtype, rngs=rngs)
                for inputs in channels[2:]
            ]
        )
        self.tower = ConvNorm(width, 2 * width, dtype=dtype, rngs=rngs)
        # Most anchors are background: the scores start at the probability 0.01.
        self.scores = last(2 * width, classes, bias=-math.log(99), rngs=rngs)
        self.boxes = last(2 * width, 4, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.stem(images.astype(jnp.float32) / 127.5 - 1))
        apply = nnx.remat(lambda stage, x: stage(x)) if self.remat else Stage.__call__
        features = []
        for stage in self.stages:
            x = apply(stage, x)
            features.append(x)
        above, logits, deltas = None, [], []
        for lateral, x in zip(self.laterals[::-1], features[:0:-1], strict=True):
            x = lateral(x)
            if above is not None:
                doubled = above.repeat(2, axis=1).repeat(2, axis=2)
                x = x + doubled[:, : x.shape[1], : x.shape[2]]
            above = x
            x = nnx.relu(self.tower(nnx.relu(x))).astype(jnp.float32)
            batch = x.shape[0]  # `len` wants a number, which an exported batch is not
            logits.insert(0, self.scores(x).reshape(batch, -1, self.classes))
            deltas.insert(0, self.boxes(x).reshape(batch, -1, 4))
        return jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)


def last(channels, outputs, *, bias=0.0, rngs):
    """The numbers wanted of each anchor at each cell."""
    return nnx.Conv(
        channels,
        PER_CELL * outputs,
        (1, 1),
        kernel_init=nnx.initializers.normal(0.01),
        bias_init=nnx.initializers.constant(bias),
        rngs=rngs,
    )


@nnx.jit
def detect(model, images):
    """The detections in a batch of images.

    Returns boxes `(b, 100, 4)`, labels, scores and `valid`, each `(b, 100)`; what is
    not valid is padding.
    """
    height, width = images.shape[1:3]
    anchors = anchors_for((height, width))

    def one(logits, deltas):
        scores = jax.nn.sigmoid(logits)
        # An anchor may see several classes, so anchors and classes are ranked together.
        best, places = jax.lax.top_k(scores.ravel(), min(CANDIDATES, scores.size))
        anchor, labels = jnp.divmod(places, scores.shape[-1])
        boxes = jaxiou.decode(deltas[anchor], anchors[anchor])
        boxes = jaxiou.clip(boxes, height, width)
        kept, valid = jaxiou.nms(
            boxes,
            best,
            labels=labels,
            threshold=0.5,
            score_threshold=0.02,
            max_outputs=MOST_DETECTIONS,
        )
        return boxes[kept], labels[kept], best[kept], valid

    return jax.vmap(one)(*model(images))
