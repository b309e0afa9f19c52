"""The pictures of docs/turned.md: `python -m examples.turned_pictures`."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Polygon

import jaxiou

OUT = Path("docs/turned")
FIRST, SECOND = (0.0, 1.0, 6.0, 2.4, 0.35), (1.2, 1.5, 5.0, 2.6, -0.5)
OVERLAPS = {
    name: getattr(jaxiou, name)
    for name in ("rotated_iou", "rotated_giou", "rotated_diou")
}
GAUSSIANS = {
    "probiou": jaxiou.probiou,
    "kfiou": jaxiou.kfiou,
    "mgiou": jaxiou.mgiou,
    "1 / (1 + log(1 + kld))": jaxiou.similarity(jaxiou.kld_distance, log=True),
}


def inside(box, x, y):
    """Where points lie inside of a turned box."""
    cx, cy, w, h, angle = box
    dx, dy = x - cx, y - cy
    cos, sin = np.cos(angle), np.sin(angle)
    return (abs(cos * dx + sin * dy) < w / 2) & (abs(cos * dy - sin * dx) < h / 2)


def draw_boxes(axes):
    """Two boxes, what they share, and what the measures say."""
    span = np.linspace(-4.5, 4.5, 700)
    x, y = np.meshgrid(span, span)
    shared = inside(FIRST, x, y) & inside(SECOND, x, y)
    axes.contourf(x, y, shared, levels=[0.5, 1.5], colors=["C2"], alpha=0.45)
    for box, colour in ((FIRST, "C0"), (SECOND, "C1")):
        corners = np.asarray(jaxiou.corners(box))
        axes.add_patch(Polygon(corners, fill=False, ec=colour, lw=2))
        axes.plot(*box[:2], "o", color=colour, ms=3)
    measures = OVERLAPS | {"rotated_iof": jaxiou.rotated_iof} | GAUSSIANS
    lines = [f"{name} {float(f(FIRST, SECOND)):.3f}" for name, f in measures.items()]
    axes.text(-4.4, -4.4, "\n".join(lines), va="top", fontsize=7)
    axes.set(xlim=(-4.5, 4.5), ylim=(4.5, -4.5), aspect="equal", title="two boxes")


def draw_gaussians(axes):
    """The same boxes as Gaussians: ellipses of one standard deviation."""
    for box, colour in ((FIRST, "C0"), (SECOND, "C1")):
        mean, covariance = map(np.asarray, jaxiou.to_gaussian(box))
        axes.add_patch(
            Polygon(np.asarray(jaxiou.corners(box)), fill=False, ec=colour, lw=0.8)
        )
        lengths, directions = np.linalg.eigh(covariance)
        angle = np.degrees(np.arctan2(*directions[::-1, 1]))
        sides = 2 * np.sqrt(lengths[::-1])
        ellipse = Ellipse(mean, *sides, angle=angle, fc=colour, alpha=0.35)
        axes.add_patch(ellipse)
    axes.set(xlim=(-4.5, 4.5), ylim=(4.5, -4.5), aspect="equal", title="as Gaussians")


def moved(changes):
    """Boxes 4 × 2 by what is added to (cx, cy, w, h, angle), against one at rest."""
    rest = jnp.array([0.0, 0.0, 4.0, 2.0, 0.0])
    boxes = rest + jnp.asarray(changes, jnp.float32)
    return boxes, jnp.broadcast_to(rest, boxes.shape)


def draw_curves(axes, changes, along):
    pair = moved(changes)
    for name, f in (OVERLAPS | GAUSSIANS).items():
        axes.plot(along, f(*pair), "--" if name in GAUSSIANS else "-", label=name)
    axes.grid(alpha=0.3)


def draw_slopes(axes):
    """How strongly each loss turns a box, by how far it is turned already."""
    degrees = np.linspace(0.5, 89.5, 179)
    pair = moved(np.radians(degrees)[:, None] * np.eye(5)[4])
    for name, f in (OVERLAPS | GAUSSIANS).items():
        total = functools.partial(lambda f, a, b: f(a, b).sum(), f)
        slope = -jax.grad(total)(*pair)[:, 4]
        axes.plot(degrees, slope, "--" if name in GAUSSIANS else "-", label=name)
    axes.set(xlabel="degrees between them", title="gradient of the loss by the angle")
    axes.grid(alpha=0.3)


def draw_overlaps():
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    panels = figure.subplots(2, 3)
    draw_boxes(panels[0, 0])
    draw_gaussians(panels[0, 1])
    panels[0, 2].axis("off")
    degrees, shifts = np.linspace(0, 90, 181), np.linspace(0, 12, 121)
    draw_curves(panels[1, 0], np.radians(degrees)[:, None] * np.eye(5)[4], degrees)
    panels[1, 0].set(xlabel="degrees between them", title="4 × 2, turned")
    draw_curves(panels[1, 1], shifts[:, None] * np.eye(5)[0], shifts)
    panels[1, 1].set(xlabel="distance of the centres", title="4 × 2, moved along x")
    draw_slopes(panels[1, 2])
    handles = panels[1, 0].get_legend_handles_labels()
    panels[0, 2].legend(*handles, loc="center", title="exact —, Gaussian - -")
    figure.savefig(OUT / "overlaps.png", dpi=90)


def draw_volumes():
    """Two boxes with a yaw in space, and their values."""
    a = np.array([0.0, 0.0, 0.0, 4.0, 2.0, 1.6, 0.2])
    b = np.array([1.0, 0.6, 0.3, 4.2, 1.8, 1.8, 0.7])
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    space = figure.add_subplot(1, 2, 1, projection="3d")
    above = figure.add_subplot(1, 2, 2)
    for box, colour in ((a, "C0"), (b, "C1")):
        flat = np.asarray(jaxiou.corners(box[[0, 1, 3, 4, 6]]))
        floor, roof = box[2] - box[5] / 2, box[2] + box[5] / 2
        for height in (floor, roof):
            ring = np.concatenate([flat, flat[:1]])
            space.plot(*ring.T, height, color=colour)
        for x, y in flat:
            space.plot([x, x], [y, y], [floor, roof], color=colour)
        above.add_patch(Polygon(flat, fill=False, ec=colour, lw=2))
    names = "yaw_iou_3d", "yaw_giou_3d", "bev_iou"
    text = "\n".join(f"{n} {float(getattr(jaxiou, n)(a, b)):.3f}" for n in names)
    above.text(-3.3, -2.3, text, va="bottom", fontsize="small")
    space.set(xlabel="x", ylabel="y", zlabel="z", box_aspect=(3, 2, 1))
    above.set(xlim=(-3.4, 4.6), ylim=(-2.4, 3.2), aspect="equal", title="from above")
    figure.savefig(OUT / "volumes.png", dpi=90)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    draw_overlaps()
    draw_volumes()
    print(*sorted(OUT.glob("*.png")))


if __name__ == "__main__":
    main()
