"""Every choice of a run; `python -m examples.detector --help` lists them."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Literal

import optax

import jaxiou

from .assign import ASSIGNERS
from .records import DataError


def smooth_l1(boxes, targets, *, where):
    """A loss without overlap: of the offsets of boxes from their targets."""
    offsets = jaxiou.encode(boxes, targets)
    return optax.losses.huber_loss(offsets).sum(-1, where=where[..., None])


LOSSES = {
    "iou": jaxiou.iou_loss,
    "giou": jaxiou.giou_loss,
    "diou": jaxiou.diou_loss,
    "ciou": jaxiou.ciou_loss,
    "log_iou": jaxiou.log_iou_loss,
    "alpha_iou": functools.partial(
        jaxiou.box_loss, measure=jaxiou.alpha_iou(alpha=3.0)
    ),
    "nwd": functools.partial(jaxiou.box_loss, measure=jaxiou.nwd(constant=32.0)),
    "smooth_l1": smooth_l1,
}

# Choices of one start of a run, which another like it does not repeat.
ALONE = ("resume", "coordinator", "processes", "process")

PRESETS = {"small": {"width": 64, "depth": 1}, "base": {"width": 128, "depth": 2}}


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a detector on boxes, report average precision, draw what it sees.

    With no argument it learns to find handwritten digits, which needs no download.
    """

    data: str = "digits"
    """`digits`, `coco:annotations.json[:images/]` or `voc:folder`."""

    skip_faulty: bool = False
    """Leave out images and annotations that cannot be read, instead of stopping."""

    out: Path = Path("runs/detector")
    """Where checkpoints, metrics and pictures go."""

    loss: Literal[tuple(LOSSES)] = "giou"
    """The loss that teaches the boxes."""

    box_weight: float = 1.0
    """What the loss of the boxes counts, where that of the classes counts 1."""

    assigner: Literal[tuple(ASSIGNERS)] = "max_iou"
    """Which anchors learn which target."""

    steps: int = 2800
    """How many training steps to take."""

    batch_size: int | None = None
    """Images in a step; by default 16 for digits and 8 for photographs."""

    image_size: tuple[int, int] | None = None
    """Height and width in pixels of what the network sees; by default 96 x 96 for
    digits, and for photographs their typical shape with a longer side of 320."""

    learning_rate: float = 4e-3
    """The highest learning rate: a short warm-up leads to it, a cosine away from it."""

    weight_decay: float = 0.05
    """Decay of the weights, as AdamW means it."""

    preset: Literal[tuple(PRESETS)] = "small"
    """`small` learns on a CPU, `base` wants a GPU: what width and depth are."""

    width: int | None = None
    """Channels of the feature pyramid, 64 or 128; the backbone scales with it."""

    depth: int | None = None
    """Residual blocks in each stage of the backbone, 1 or 2."""

    seed: int = 0
    """The same seed on the same machine repeats a run."""

    digit_images: int = 4000
    """How many training images to compose out of the handwritten digits."""

    augment: bool = True
    """Vary images at random: mirrored (photographs), zoomed, moved, relit."""

    workers: int = 0
    """Processes that prepare images; 0 for threads of this one."""

    evaluations: int = 4
    """How often to measure average precision: on the validation images, and at the
    end on the test images."""

    save_every: int = 500
    """Steps between checkpoints."""

    resume: bool = False
    """Go on from the last checkpoint in `out`, with all choices of that run."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; weights and boxes stay float32."""

    accumulate: int = 1
    """Steps whose gradients are averaged before the weights change."""

    remat: bool = False
    """Compute the backbone twice instead of keeping what the gradient needs."""

    devices: int | None = None
    """How many devices share a batch; by default all."""

    coordinator: str | None = None
    """Address `host:port` of the first of several processes, given to each of them."""

    processes: int = 1
    """How many processes there are; each prepares its part of a batch."""

    process: int = 0
    """Which of them this one is."""

    def __post_init__(self):
        # From a file; flags are checked before.
        names = {"loss": LOSSES, "assigner": ASSIGNERS, "preset": PRESETS}
        for name, known in names.items():
            if (chosen := getattr(self, name)) not in known:
                raise ValueError(f"{name} {chosen}: there are {', '.join(known)}")
        counts = "steps", "digit_images", "evaluations", "save_every", "accumulate"
        numbers = {name: getattr(self, name) for name in counts} | self.network
        optional = {"batch_size": self.batch_size, "devices": self.devices}
        numbers |= {name: x for name, x in optional.items() if x is not None}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
        if min(self.workers, self.seed) < 0 or not self.learning_rate > 0:
            raise ValueError(
                "--workers and --seed must not be negative, --learning-rate positive"
            )
        if self.image_size and (len(self.image_size) != 2 or min(self.image_size) < 16):
            raise ValueError("--image-size must be two numbers, at least 16")
        if self.network["width"] % 32:
            raise ValueError("--width must be a multiple of 32")

    @property
    def network(self):
        """Width and depth: as given, else as the preset says."""
        given = {"width": self.width, "depth": self.depth}
        chosen = {name: x for name, x in given.items() if x is not None}
        return PRESETS[self.preset] | chosen

    @property
    def box_loss(self):
        """The function named by `loss`: `(boxes, targets, *, where) -> losses`."""
        return LOSSES[self.loss]

    def save(self, path, classes):
        """Writes the configuration and the names of the classes as JSON."""
        fields = dataclasses.asdict(self) | {"out": str(self.out), "classes": classes}
        for name in ALONE:
            del fields[name]
        part = path.with_suffix(".part")
        part.write_text(json.dumps(fields, indent=2) + "\n")
        part.replace(path)

    @classmethod
    def load(cls, path):
        """The configuration and the names of the classes that `save` wrote."""
        try:
            fields = json.loads(path.read_text())
            if not isinstance(fields, dict):
                raise ValueError("not a JSON object")
            classes = tuple(fields.pop("classes", ()))
            if "out" in fields:
                fields["out"] = Path(fields["out"])
            for name, value in fields.items():
                if isinstance(value, list):
                    fields[name] = tuple(value)
                kind = type(getattr(cls, name, None))
                if kind in (bool, int, str) and type(value) is not kind:
                    raise ValueError(f"{name} is {value!r}, no {kind.__name__}")
            return cls(**fields), classes
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: {error}") from None
