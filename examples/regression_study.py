"""Boxes drawn to their targets by every loss: `python -m examples.regression_study`.

The simulation of Z. Zheng et al., "Distance-IoU Loss", 2020, arXiv:1911.08287: seven
targets of area 1 at (10, 10), anchors at 5,000 points of a disc of radius 3 around them
in seven sizes and seven shapes, 1,715,000 cases in all. Each box (cx, cy, w, h) takes
200 steps B - η (2 - IoU) ∇L, with η = 0.1, from step 161 on 0.01 and from step 181 on
0.001, as in the authors' code. Its error is |B - target| summed over the coordinates.

Two choices are ours. Gradients are exact; those of the authors' code are not: along the
sides the slope of the overlap counts twice, and the hull of DIoU has others. And a step
leaves a side at `SHORTEST` at least: a box with a side below zero is empty, and most
overlaps draw it nowhere.
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
from tqdm import tqdm

import jaxiou
from benchmarks.report import markdown

from .page import fill, head, heading, read
from .pictures import draw_curves, draw_slopes, draw_surfaces

CENTRE, RADIUS, SHORTEST = 10.0, 3.0, 1e-3
ASPECTS = (1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0)  # width over height
AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
ITERATIONS = 200
BLOCK = 100  # points: what a step touches stays in the caches
ARRIVED = 0.1  # error
SURFACES = ("iou", "giou", "diou", "ciou", "smooth_iou", "nwd")
SLOPES = ("iou", "giou", "diou", "siou", "extended_iou", "smooth_iou", "nwd", "l1")


def of(measure):
    return functools.partial(jaxiou.box_loss, measure=measure)


def coordinates(loss):
    """A loss of Optax summed over (cx, cy, w, h)."""

    def summed(boxes, targets):
        pair = (jaxiou.convert(b, "xyxy", "cxcywh") for b in (boxes, targets))
        return loss(*jnp.broadcast_arrays(*pair)).sum(-1)

    return summed


LOSSES = {
    "iou": jaxiou.iou_loss,
    "squared_iou": jaxiou.squared_iou_loss,
    "log_iou": jaxiou.log_iou_loss,
    "alpha_iou": of(jaxiou.alpha_iou(alpha=3.0)),
    "focaler": of(jaxiou.focaler(lower=0.0, upper=0.95)),
    "inner_iou": of(jaxiou.inner_iou(ratio=1.2)),
    "bounded_iou": of(jaxiou.bounded_iou),
    "giou": jaxiou.giou_loss,
    "diou": jaxiou.diou_loss,
    "ciou": jaxiou.ciou_loss,
    "eiou": of(jaxiou.eiou),
    "focal_eiou": jaxiou.focal_eiou_loss,
    "siou": of(jaxiou.siou),
    "extended_iou": of(jaxiou.extended_iou),
    "smooth_iou": of(jaxiou.smooth_iou(point=0.1)),
    "mpdiou": of(jaxiou.mpdiou((20.0, 20.0))),
    "shape_iou": of(jaxiou.shape_iou()),
    "piou": of(jaxiou.piou),
    "piou_v2": of(jaxiou.piou_v2()),
    "wiou": of(jaxiou.wiou),
    "nwd": of(jaxiou.nwd(constant=1.0)),
    "l1": coordinates(lambda boxes, targets: jnp.abs(boxes - targets)),
    "smooth_l1": coordinates(optax.losses.huber_loss),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures how far each loss brings boxes towards their targets."""

    points: int = 5000
    """Points in the disc; each has 343 cases."""
    losses: str = "all"
    """Names of losses, separated by commas."""
    out: Path = Path("docs/regression")
    """Where `regression.json` and the pictures go."""
    iterations: int = ITERATIONS
    """Steps of gradient descent."""
    seed: int = 0
    """Draws the points."""
    tables: bool = False
    """Measure nothing; write the table of `out` into docs/which_loss.md."""


def cases(points, seed):
    """Centres `(points, 2)`, shapes of anchors `(49, 2)`, targets `(7, 4)` cxcywh."""
    rng = np.random.default_rng(seed)
    radius, turn = rng.uniform(0, 1, (2, points))
    radius, turn = RADIUS * np.sqrt(radius), 2 * np.pi * turn
    centres = CENTRE + np.stack([radius * np.cos(turn), radius * np.sin(turn)], -1)
    sides = np.sqrt([[ratio, 1 / ratio] for ratio in ASPECTS])
    shapes = np.concatenate([math.sqrt(area) * sides for area in AREAS])
    targets = np.concatenate([np.full((7, 2), CENTRE), sides], -1)
    return centres.astype(np.float32), shapes.astype(np.float32), targets


def rates(iterations):
    """The factor η of every step."""
    step = np.arange(iterations) / iterations
    return np.select([step < 0.8, step < 0.9], [0.1, 0.01], 0.001).astype(np.float32)


@functools.partial(jax.jit, static_argnames="loss")
def descend(centres, shapes, targets, rates, loss):
    """All cases of some points.

    Returns the error by step and point, that in the end and the IoU at the beginning
    by target, anchor and point.
    """
    # Coordinates lead: planes of cases, without a short last axis.
    wanted = targets.T[:, :, None, None]  # (4, 7, 1, 1)
    shape = (len(targets), len(shapes), len(centres))
    start = jnp.concatenate(
        [
            jnp.broadcast_to(centres.T[:, None, None, :], (2, *shape)),
            jnp.broadcast_to(shapes.T[:, None, :, None], (2, *shape)),
        ]
    )

    def corners(boxes):
        return jaxiou.convert(jnp.moveaxis(boxes, 0, -1), "cxcywh", "xyxy")

    def error(boxes):
        return jnp.abs(boxes - wanted).sum(0)

    def step(boxes, rate):
        slope = jax.grad(lambda boxes: loss(corners(boxes), corners(wanted)).sum())
        weight = 2 - jaxiou.iou(corners(boxes), corners(wanted))
        boxes = boxes - rate * weight[None] * slope(boxes)
        boxes = jnp.concatenate([boxes[:2], jnp.maximum(boxes[2:], SHORTEST)])
        return boxes, error(boxes).sum((0, 1))

    boxes, errors = jax.lax.scan(step, start, rates)
    return errors, error(boxes), jaxiou.iou(corners(start), corners(wanted))


def simulate(name, config):
    """One loss on all cases: a row of results, and the final error of every point."""
    centres, shapes, targets = cases(config.points, config.seed)
    targets = jnp.asarray(targets, jnp.float32)
    size = min(BLOCK, config.points)
    began, parts = time.perf_counter(), []
    for first in tqdm(range(0, config.points, size), desc=name, leave=False):
        # The last block begins anew with the first points: one shape, one compilation.
        points = centres[np.arange(first, first + size) % config.points]
        found = descend(points, shapes, targets, rates(config.iterations), LOSSES[name])
        parts.append([np.asarray(part, np.float64) for part in found])
    seconds = time.perf_counter() - began
    errors, final, start = (
        np.concatenate(part, -1)[..., : config.points]
        for part in zip(*parts, strict=True)
    )
    apart = start <= 0
    row = {
        "error": final.mean(),
        "overlapping": final[~apart].mean() if (~apart).any() else None,
        "apart": final[apart].mean() if apart.any() else None,
        "arrived": (final < ARRIVED).mean(),
    }
    row = {key: None if x is None else float(f"{x:.4g}") for key, x in row.items()}
    curve = [float(f"{x:.4g}") for x in errors.sum(-1)]
    return row | {"seconds": round(seconds, 1), "curve": curve}, final.mean((0, 1))


def slopes(loss, gaps):
    """How strongly a unit box is drawn to one on its right, a little lower.

    The size of the gradient with respect to the place of the box along the gap.
    """

    def value(place, gap):
        corners = jnp.array([0.0, 0.0, 1.0, 1.0])
        offset = jnp.stack([1 + gap, jnp.full_like(gap, 0.25)])
        return loss(corners + jnp.tile(place, 2), corners + jnp.tile(offset, 2))

    found = jax.vmap(jax.grad(value), (None, 0))(jnp.zeros(2), gaps)
    return jnp.abs(found[:, 0])


def ranked(results):
    """Names and rows, the smallest error first."""
    return sorted(results["losses"].items(), key=lambda item: item[1]["error"])


def table(results, folder="regression"):
    """The results as Markdown, with the pictures."""
    if results is None:
        return None
    columns = ("error", "overlapping", "apart")
    rows = [
        [
            f"`{name}`",
            *("" if row[key] is None else f"{row[key]:.3g}" for key in columns),
            f"{row['arrived']:.1%}",
            f"{row['seconds']:.0f}",
        ]
        for name, row in ranked(results)
    ]
    header = ["loss", "error", "began overlapping", "began apart", "arrived", "s"]
    pictures = "\n".join(
        f"![{text}]({folder}/{name}.png)"
        for name, text in (
            ("curves", "Total error by iteration"),
            ("surface", "Final error by the place where the anchor began"),
            ("gradients", "Gradient of each loss by the distance of boxes apart"),
        )
    )
    text = f"{results['cases']:,} cases. {heading(results['head'])}"
    return f"{markdown(header, rows)}\n\n{text}\n\n{pictures}"


def run(config):
    """Measures, writes and draws; returns the results."""
    names = list(LOSSES) if config.losses == "all" else config.losses.split(",")
    if unknown := set(names) - set(LOSSES):
        raise SystemExit(f"--losses: unknown {sorted(unknown)}; {', '.join(LOSSES)}")
    config.out.mkdir(parents=True, exist_ok=True)
    results = {
        "head": head("examples.regression_study"),
        "cases": config.points * len(AREAS) * len(ASPECTS) ** 2,
        "losses": {},
    }
    errors = {}
    for name in names:
        results["losses"][name], errors[name] = simulate(name, config)
    text = json.dumps(results, indent=1)
    (config.out / "regression.json").write_text(text + "\n")
    curves = {name: row["curve"] for name, row in ranked(results)}
    title = f"{results['cases']:,} regression cases"
    draw_curves(config.out / "curves.png", title, curves)
    shown = {name: errors[name] for name in SURFACES if name in errors} or errors
    centres, *_ = cases(config.points, config.seed)
    draw_surfaces(config.out / "surface.png", centres, shown)
    gaps = jnp.geomspace(1e-2, 30, 200)
    found = {name: slopes(LOSSES[name], gaps) for name in SLOPES}
    draw_slopes(config.out / "gradients.png", gaps, found)
    return results


def main():
    config = tyro.cli(Config, prog="python -m examples.regression_study")
    if config.tables:
        fill({"regression": table(read(config.out / "regression.json"))})
    else:
        print(table(run(config)))


if __name__ == "__main__":
    main()
