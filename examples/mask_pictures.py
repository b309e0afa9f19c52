"""The picture of docs/masks.md: `python -m examples.mask_pictures`."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxiou

OUT = Path("docs/masks/losses.png")
SIDE = 64  # pixels of a mask


def disc(x, y, radius):
    """A round mask."""
    row, column = np.mgrid[:SIDE, :SIDE] + 0.5
    return (row - y) ** 2 + (column - x) ** 2 < radius**2


def draw_overlap(axes):
    """Two discs: what is right, found in vain, and missed."""
    targets, found = disc(28, 34, 16), disc(38, 28, 15)
    picture = np.full((SIDE, SIDE, 3), 245, np.uint8)
    picture[found & ~targets] = 255, 165, 60  # in vain
    picture[targets & ~found] = 90, 140, 220  # missed
    picture[targets & found] = 70, 170, 90
    axes.imshow(picture)
    pair = found.astype(np.float32), targets
    losses = {
        "Jaccard": jaxiou.jaccard_loss(*pair, axis=None),
        "Dice": jaxiou.dice_loss(*pair, axis=None),
        "Tversky 0.3, 0.7": jaxiou.tversky_loss(*pair, axis=None, alpha=0.3, beta=0.7),
    }
    text = "\n".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    axes.text(2, 3, text, va="top", fontsize="small")
    axes.text(30, 60, "missed", color="C0", ha="right", fontsize="small")
    axes.text(62, 50, "in vain", color="C1", ha="right", fontsize="small")
    axes.set(xticks=[], yticks=[], title="two masks")


def draw_soft_labels(axes):
    """One value for all pixels of a mask whose labels are 0.6."""
    predictions = jnp.tile(jnp.linspace(0, 1, 201)[:, None], SIDE)
    targets = jnp.full_like(predictions, 0.6)
    loss = jaxiou.jaccard_loss(predictions, targets, axis=1)
    product = jaxiou.jaccard_loss(predictions, targets, axis=1, soft_labels=False)
    axes.plot(predictions[:, 0], loss, label="Jaccard, min(t, p)")
    axes.plot(predictions[:, 0], product, "--", label="Jaccard, t p")
    axes.axvline(0.6, color="k", lw=0.8)
    axes.text(0.61, 0.95, "the labels", fontsize="small")
    axes.set(xlabel="prediction", title="soft labels", xlim=(0, 1), ylim=(0, 1))


def draw_shares(axes):
    """What an object that is not found costs, by its share of the image."""
    sizes, pixels = np.unique(np.geomspace(1, 2000, 30).astype(int)), SIDE**2
    targets = np.arange(pixels) < sizes[:, None]
    predictions = np.full(targets.shape, 0.02, np.float32)
    where = {"Jaccard": jaxiou.jaccard_loss, "Lovász": jaxiou.lovasz_softmax}
    curves = {name: loss(predictions, targets, axis=1) for name, loss in where.items()}
    right = np.where(targets, predictions, 1 - predictions)
    for name, loss in {"cross entropy": -np.log(right).mean(1), **curves}.items():
        axes.plot(sizes / pixels, loss, "--" if name == "Lovász" else "-", label=name)
    axes.set(xscale="log", xlabel="share of the image", ylim=(0, None))
    axes.set(title="an object missed (p = 0.02)")


def main():
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for draw, axes in zip(
        (draw_overlap, draw_soft_labels, draw_shares), panels, strict=True
    ):
        draw(axes)
    for axes in panels[1:]:
        axes.grid(alpha=0.3)
        axes.set_ylabel("loss")
        axes.legend(fontsize="small")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT, dpi=90)
    print(OUT)


if __name__ == "__main__":
    main()
