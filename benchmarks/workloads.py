"""What is measured: shapes, which the tests share, jobs made of them, and inputs."""

import dataclasses

import numpy as np

# Sizes of the matrices that matter: anchors or predictions times targets.
WORKLOADS = {
    "coco": (8_400, 100),
    "dense": (16_800, 512),
    "long": (100_000, 300),
    "square": (5_000, 5_000),
    "crowded": (8_400, 4_967),
    "lopsided": (1_000_000, 2_000),
    "thousand": (1_000, 1_000),
    "wide": (40_000, 10_000),
}
FAMILIES = (
    "pairwise",
    "match",
    "losses",
    "masks",
    "nms",
    "rescoring",
    "assigners",
    "evaluation",
    "rotated",
    "memory",
)
MATRICES = ("coco", "dense", "long", "square", "crowded")
MASK_LOSSES = ("jaccard", "dice", "lovasz")
ASSIGNERS = ("atss", "task_aligned", "simota")
STRIDES, CLASSES = (8, 16, 32), 80
# Of an IoU: 2 max, 2 min, 2 differences, 2 clamps, 1 product, 2 for the union, 1 ratio.
OPERATIONS = 12


@dataclasses.dataclass(frozen=True)
class Job:
    """One measurement: `images` times `n` boxes against `m`, or pixels × classes."""

    family: str
    case: str
    workload: str
    n: int
    m: int = 1
    images: int = 1

    @property
    def pairs(self):
        return self.images * self.n * self.m

    @property
    def coordinates(self):
        return 5 if self.family == "rotated" else 4

    @property
    def traffic(self):
        """Bytes that have to move: every input read once, every output written once."""
        if self.family == "rotated" and self.case == "losses":
            return 60 * self.n
        boxes = 4 * self.coordinates * self.images * (self.n + self.m)
        if self.family == "losses":
            return (64 if self.case == "decoded giou" else 48) * self.n
        if self.family == "masks":
            return 12 * self.pairs
        if self.family in ("pairwise", "rotated"):
            return 4 * self.pairs + (2 if self.case == "vjp" else 1) * boxes
        return boxes + boxes // 2

    def inputs(self):
        rng = np.random.default_rng(0)
        lead = (self.images,)
        match self.family:
            case "pairwise":
                sets = boxes(rng, self.n), boxes(rng, self.m)
                cotangent = rng.standard_normal((self.n, self.m), np.float32)
                return (*sets, cotangent) if self.case == "vjp" else sets
            case "losses":
                targets = boxes(rng, self.n)
                sides = np.tile(targets[:, 2:] - targets[:, :2], 2)
                shift = rng.uniform(-0.2, 0.2, targets.shape).astype(np.float32)
                if self.case == "decoded giou":
                    return shift, targets + shift * sides, targets
                return targets + shift * sides, targets
            case "masks":
                return masks(rng, self.images, self.n, self.m)
            case "nms":
                sets = [candidates(rng, self.case, self.n) for _ in range(self.images)]
                return tuple(map(np.stack, zip(*sets, strict=True)))
            case "rescoring":
                return candidates(rng, "clusters", self.n)
            case "evaluation":
                return detections(rng, self.images, self.n, self.m)
            case _ if self.case in ASSIGNERS:
                return scene(rng, self.case, self.images, self.n, self.m)
            case "rotated" if self.case == "losses":
                targets = turned(rng, self.n)
                sides = targets[:, [2, 3, 2, 3]]
                shift = rng.uniform(-0.2, 0.2, targets.shape).astype(np.float32)
                shift[:, :4] *= sides
                return targets + shift, targets
            case "rotated":
                sets = turned(rng, self.n), turned(rng, self.m)
                cotangent = rng.standard_normal((self.n, self.m), np.float32)
                return (*sets, cotangent) if self.case == "vjp" else sets
        return boxes(rng, *lead, self.n), boxes(rng, *lead, self.m)


def jobs(only=FAMILIES, *, tiny=False, larger=False):
    """All jobs of some families; `tiny` keeps the kinds and shrinks the sizes.

    `larger` adds what it takes to keep an accelerator busy.
    """
    loss_names = ("iou", "giou", "diou", "ciou", "decoded giou")
    every = [
        *(Job("pairwise", "forward", w, *WORKLOADS[w]) for w in MATRICES),
        *(Job("pairwise", "vjp", w, *WORKLOADS[w]) for w in MATRICES),
        *(Job("match", "best_match", w, *WORKLOADS[w]) for w in MATRICES[:-1]),
        Job("match", "best_match", "crowded × 8", *WORKLOADS["crowded"], 8),
        Job("match", "best_match", "lopsided", *WORKLOADS["lopsided"]),
        *(Job("match", "match_anchors", w, *WORKLOADS[w]) for w in ("coco", "dense")),
        *(Job("losses", name, "1M pairs", 1_000_000) for name in loss_names),
        *(Job("masks", name, f"{images} × 512² × {m}", 512**2, m, images)
          for name in MASK_LOSSES for images, m in ((8, 1), (2, 19))),
        *(Job("nms", c, f"{n:,}", n) for c in ("random", "clusters")
          for n in (4_096, 16_384)),
        Job("nms", "clusters", "1,024 × 32", 1_024, 1, 32),
        *(Job("rescoring", c, "4,096", 4_096) for c in ("soft", "matrix")),
        *(Job("assigners", c, "coco × 8", *WORKLOADS["coco"], 8) for c in ASSIGNERS),
        Job("evaluation", "average_precision", "500 × 100 × 20", 100, 20, 500),
        *(Job("rotated", c, "thousand", *WORKLOADS["thousand"])
          for c in ("forward", "vjp")),
        Job("rotated", "losses", "100k pairs", 100_000),
        Job("memory", "best_match", "1M × 5k", 1_000_000, 5_000),
        Job("memory", "streamed", "crowded × 128", *WORKLOADS["crowded"], 128),
        Job("memory", "task_aligned", "crowded × 128", *WORKLOADS["crowded"], 128),
    ]  # fmt: skip
    if larger:
        every += [
            *(
                Job("pairwise", c, "wide", *WORKLOADS["wide"])
                for c in ("forward", "vjp")
            ),
            Job("match", "best_match", "coco × 64", *WORKLOADS["coco"], 64),
            *(Job("losses", name, "16M pairs", 16_000_000) for name in loss_names),
            *(Job("nms", c, "65,536", 65_536) for c in ("random", "clusters")),
        ]
    if tiny:
        every = [
            dataclasses.replace(
                job,
                n=84 if job.case in ASSIGNERS else job.n // 256 + 5,
                m=min(job.m, job.m // 128 + 2),
                images=min(job.images, 3),
            )
            for job in every
        ]
    return [job for job in every if job.family in only]


def boxes(rng, *shape, extent=640.0, smallest=8.0, largest=256.0):
    """Boxes `(*shape, 4)`: uniform centres, sides spread evenly over the octaves."""
    centres = rng.uniform(0, extent, (*shape, 2))
    halves = np.exp(rng.uniform(*np.log([smallest, largest]), (*shape, 2))) / 2
    return np.concatenate([centres - halves, centres + halves], -1).astype(np.float32)


def masks(rng, images, pixels, classes):
    """Probabilities `(images, pixels, classes)`, mostly right, and labels."""
    drawn = rng.integers(0, max(classes, 2), (images, pixels, 1))
    targets = (drawn == np.arange(1, classes + 1) % max(classes, 2)).astype(np.float32)
    logits = rng.standard_normal(targets.shape, np.float32) + 4 * targets
    odds = np.exp(logits - 2 * (classes == 1))
    return odds / (odds.sum(-1, keepdims=True) + (classes == 1)), targets


def turned(rng, n):
    """Boxes `(n, 5)` with the centres and sides of `boxes`, at any angle."""
    found = boxes(rng, n)
    low, high = found[:, :2], found[:, 2:]
    angles = rng.uniform(-np.pi, np.pi, (n, 1)).astype(np.float32)
    return np.concatenate([(low + high) / 2, high - low, angles], axis=1)


def candidates(rng, case, n):
    """Boxes and scores to suppress: "random", or "clusters" as detectors give them."""
    if case == "random":
        # As dense as it takes for about half of them to survive a threshold of 0.5.
        found = boxes(rng, n, extent=5.5 * n**0.5, smallest=16.0, largest=64.0)
        return found, rng.random(n, np.float32)
    objects = boxes(rng, 100, smallest=32.0)
    whose = rng.integers(0, 100, n)
    sides = np.tile(objects[:, 2:] - objects[:, :2], 2)[whose]
    shift = rng.normal(0, 0.08, (n, 4))
    scores = np.exp(-8 * np.abs(shift).mean(-1)) * rng.uniform(0.5, 1, n)
    return (objects[whose] + shift * sides).astype(np.float32), scores.astype("f4")


def scene(rng, case, images, n, m):
    """What an assigner is given: cells of three strides and what they predict.

    Cells inside of a target predict it more or less, the others anything.
    """
    side = round((n / sum(4**k for k in range(len(STRIDES)))) ** 0.5)
    sides = [side * STRIDES[-1] // stride for stride in STRIDES]
    levels = [
        (np.mgrid[:k, :k][::-1].reshape(2, -1).T + 0.5) * stride
        for k, stride in zip(sides, STRIDES, strict=True)
    ]
    points = np.concatenate(levels).astype(np.float32)
    strides = np.repeat(STRIDES, np.square(sides)).astype(np.float32)
    targets = boxes(rng, images, m, extent=float(side * STRIDES[-1]))
    every = [np.broadcast_to(x, (images, *x.shape)) for x in (points, strides)]
    if case == "atss":
        reach = 4 * strides[:, None]
        anchors = np.concatenate([points - reach, points + reach], 1)
        return np.broadcast_to(anchors, (images, n, 4)), targets
    owner = rng.integers(0, m, (images, n))
    starts = np.cumsum([0, *np.square(sides)])
    for image, found in zip(owner, targets, strict=True):
        for start, k, stride in zip(starts, sides, STRIDES, strict=False):
            cells = image[start : start + k * k].reshape(k, k)
            edges = np.ceil(found / stride - 0.5).clip(0).astype(int)
            for j, (x1, y1, x2, y2) in enumerate(edges):
                cells[y1:y2, x1:x2] = j
    own = np.take_along_axis(targets, owner[..., None], 1)
    shift = rng.normal(0, 0.1, own.shape) * np.tile(own[..., 2:] - own[..., :2], 2)
    predicted = (own + shift).astype(np.float32)
    scores = rng.random((images, n, CLASSES), np.float32)
    labels = rng.integers(0, CLASSES, (images, m), np.int32)
    inputs = scores, predicted, every[0], labels, targets
    return (*inputs, every[1]) if case == "simota" else inputs


def level_sizes(n):
    """Cells on each level of `scene`."""
    parts = [4**k for k in reversed(range(len(STRIDES)))]
    return [n * part // sum(parts) for part in parts]


def detections(rng, images, d, t):
    """Detections, mostly of the targets of their image; a fifth of those is padding."""
    targets = boxes(rng, images, t)
    labels = rng.integers(0, CLASSES, (images, t), np.int32)
    real = rng.random((images, t)) < 0.8
    crowd = rng.random((images, t)) < 0.02
    whose = rng.integers(0, t, (images, d))
    own = np.take_along_axis(targets, whose[..., None], 1)
    noise = rng.uniform(0, 0.2, (images, d, 1))
    shift = rng.normal(size=own.shape) * np.tile(own[..., 2:] - own[..., :2], 2)
    found = (own + noise * shift).astype(np.float32)
    found = np.concatenate(
        [np.minimum(found[..., :2], found[..., 2:]),
         np.maximum(found[..., :2], found[..., 2:])], -1,
    )  # fmt: skip
    right = rng.random((images, d)) < 0.7
    guess = rng.integers(0, CLASSES, (images, d), np.int32)
    named = np.where(right, np.take_along_axis(labels, whose, 1), guess)
    scores = (rng.random((images, d)) * (1 - noise[..., 0] * 3)).astype(np.float32)
    return found, scores, named, targets, labels, real, crowd
