"""A file that needs none of this code: `python -m examples.detector.export --help`.

detect = jax.export.deserialize(bytearray(open("detector.bin", "rb").read()))
boxes, labels, scores, valid = detect.call(images)  # (b, height, width, 3) uint8
"""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.export
import jax.numpy as jnp
import tyro
from flax import nnx

from .command import command
from .model import detect
from .state import restore


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a trained detector with its weights as one file that JAX can run."""

    run: tyro.conf.Positional[Path]
    """The folder of a run."""

    out: Path = Path("detector.bin")
    """The file to write."""

    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = (
        "cpu",
        "cuda",
        "tpu",
    )
    """Where it is to run."""


def export(model, image_size, platforms):
    """The detector for any number of images of this size, weights included."""
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_size, 3), jnp.uint8)
    graph, state = nnx.split(model)

    @jax.jit
    def program(images):
        # Variables of this trace: Flax refuses those of another.
        own = jax.tree.map(jnp.asarray, state)
        return detect(nnx.merge(graph, own), images)

    return jax.export.export(program, platforms=platforms)(images)


def write(options):
    model, config, classes = restore(options.run)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    made = export(model, config.image_size, options.platforms)
    data = made.serialize()
    options.out.write_bytes(data)
    height, width = config.image_size
    print(f"{options.out}: {len(data) / 1e6:.1f} MB, images (b, {height}, {width}, 3)")
    print(f"uint8, for {', '.join(options.platforms)}; labels: {', '.join(classes)}")


if __name__ == "__main__":
    prog = "python -m examples.detector.export"
    command(lambda: write(tyro.cli(Export, prog=prog)))
