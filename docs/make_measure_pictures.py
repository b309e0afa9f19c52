"""Writes docs/measure_pictures.md and its pictures from what the measures do.

    python docs/make_measure_pictures.py

A test compares the page with what this makes, and looks whether the pictures are there.
A new public measure gets its picture without a line here.
"""

import functools
import inspect
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxiou

PAGE = Path(__file__).parent / "measure_pictures.md"
FOLDER = PAGE.with_suffix("")
# Members of families whose parameters have no defaults, in the unit of the pictures.
PARAMETERS = {
    "mpdiou": {"image_size": (8.0, 8.0)},
    "inner_iou": {"ratio": 0.7},
    "nwd": {"constant": 2.0},
    "rotated_nwd": {"constant": 2.0},
}
REACH = 3.0
BOX, TARGET = np.array([1.2, 0.6]), np.array([2.0, 1.2])
TURNED = np.array([2.0, 1.0])
# No place of the coarse grid has boxes that just touch.
FINE, COARSE = 121, 20
WHERE_NONE = 1e-9  # of the slope; rounding of float64 stays far below
HEAD = """# Pictures of measures

Two pictures of the loss 1 - measure, of every measure. Left: its level sets, dark where
it is small. Right: where a step down the gradient would move the box. The length of an
arrow grows with the root of the slope; dots are where there is no slope.

**Boxes**: a box of {box} lies at an offset (dx, dy) from a target of {target}, y down.
The solid outline is the target; with its centre within the dashed line the box overlaps
the target, within the dotted one it lies inside of it.

**Boxes that turn**: a box of {turned} lies at an offset dx along the long side of a
target of the same size, and is turned by an angle. Arrows are steps of dx and of the
angle in radians. Within the dashed line the two overlap.

*Without overlap* is found on the grid of the arrows: whether the places there have a
gradient with respect to the centre, and whether a step down leads nearer. This page is
made by `python docs/make_measure_pictures.py`; [Measures](measures.md) has formulas.
"""


def members():
    """Public measures of flat boxes, of a family one; first those that do not turn."""
    found = []
    for name, value in sorted(vars(jaxiou).items()):
        if hasattr(value, "measure_family"):
            value = value(**PARAMETERS.get(name, {}))
        if isinstance(value, jaxiou.Measure) and value.coordinates in (4, 5):
            found.append((name, value))
    return sorted(found, key=lambda entry: entry[1].coordinates)


def turns(measure):
    """Whether the second number of a place is an angle."""
    return measure.coordinates == 5


def grid(measure, count):
    """`(count, count, 2)` places: an offset, or an offset and an angle."""
    first = np.linspace(-REACH, REACH, count)
    second = np.linspace(-np.pi / 2, np.pi / 2, count) if turns(measure) else first
    return np.stack(np.meshgrid(first, second), -1)


def loss(measure, place):
    """1 - measure of the box at a place and the target."""
    if turns(measure):
        box = jnp.array([place[0], 0.0, *TURNED, place[1]])
        return 1 - measure(box, jnp.array([0.0, 0.0, *TURNED, 0.0]))
    box = jnp.concatenate([place - BOX / 2, place + BOX / 2])
    return 1 - measure(box, jnp.concatenate([-TARGET / 2, TARGET / 2]))


def gap(measure, places):
    """How far apart the boxes are along the side that parts them; overlap below 0."""
    x, y = np.moveaxis(places, -1, 0)
    if not turns(measure):
        w, h = (BOX + TARGET) / 2
        return np.maximum(abs(x) - w, abs(y) - h)
    w, h = TURNED / 2
    c, s = abs(np.cos(y)), abs(np.sin(y))
    # The target's sides, then the box's; the offset is along x.
    gaps = [abs(x) - w - w * c - h * s, -h - w * s - h * c]
    gaps += [abs(x) * c - w - w * c - h * s, abs(x) * s - h - w * s - h * c]
    return np.max(np.broadcast_arrays(*gaps), axis=0)


@functools.cache
def field(measure, count):
    """Places, losses, and steps down the gradient."""
    with jax.enable_x64(True):
        places = grid(measure, count)
        slope = jax.value_and_grad(functools.partial(loss, measure))
        losses, slopes = jax.jit(jax.vmap(jax.vmap(slope)))(places)
    steps = -np.asarray(slopes)
    steps[np.linalg.norm(steps, axis=-1) < WHERE_NONE] = 0
    return places, np.asarray(losses), steps


def apart(measure):
    """What the gradient does where the boxes do not overlap, in words."""
    places, _, steps = field(measure, COARSE)
    far = gap(measure, places) > 0
    # Of boxes that turn the place alone: the angle brings none nearer.
    axes = 1 if turns(measure) else 2
    places, steps = places[far][:, :axes], steps[far][:, :axes]
    moves = (abs(steps) >= WHERE_NONE).any(-1)
    nearer = ((steps * places).sum(-1) < 0) & moves
    if not moves.any():
        return "no gradient"
    if nearer.all():
        return "a gradient everywhere, towards the target"
    return (
        f"a gradient at {share(moves.mean())} of the places, towards the target at "
        f"{share(nearer.mean())} of all"
    )


def share(part):
    """A part of all in per cent, all and none only where it is."""
    per_cent = 100 * part
    return f"{min(max(per_cent, 1), 99) if 0 < part < 1 else per_cent:.0f} %"


def about(name, measure):
    """The heading, the first line of the docstring, and what the measure says."""
    words = inspect.cleandoc(measure.__doc__).splitlines()[0]
    least = f"{measure.minimum:.4g}".replace("-inf", "-∞")
    bounds = f"From {least} to {measure.maximum:.4g}"
    traits = "symmetric" if measure.symmetric else "not symmetric"
    traits += ", scale-free" if measure.scale_free else ", not scale-free"
    shown = f"Shown: `{measure!r}`. " if measure.parameters else ""
    text = f"{words} {shown}{bounds}, {traits}. Without overlap: {apart(measure)}."
    return f"""
### {name}

{textwrap.fill(text, 88, break_on_hyphens=False)}

![1 - {name} and its gradient]({FOLDER.name}/{name}.png)
"""


def build():
    """The text of the page."""
    box, target, turned = (f"{w:g} × {h:g}" for w, h in (BOX, TARGET, TURNED))
    parts = [HEAD.format(box=box, target=target, turned=turned)]
    titles = {4: "\n## Boxes\n", 5: "\n## Boxes that turn\n"}
    for name, measure in members():
        parts.append(titles.pop(measure.coordinates, ""))
        parts.append(about(name, measure))
    return "".join(parts)


def draw(name, measure):
    """One picture of few colours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    plt.rcParams.update({"font.size": 8, "axes.titlesize": 9})
    places, losses, _ = field(measure, FINE)
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.4), dpi=100, layout="constrained")
    x, y = np.moveaxis(places, -1, 0)
    levels = np.linspace(losses.min(), losses.max(), 13)
    left, right = axes
    shades = left.contourf(x, y, losses, levels, cmap="Blues_r")
    left.contour(x, y, losses, levels, colors="0.25", linewidths=0.4)
    figure.colorbar(shades, ax=left, ticks=levels[::4], format="%.2f", shrink=0.8)
    left.set_title(f"1 - {name}")
    arrows(right, measure)
    right.set_title("a step down")
    for panel in axes:
        outline(panel, measure)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    plt.close(figure)
    image = image.quantize(64, dither=Image.Dither.NONE)
    image.save(FOLDER / f"{name}.png", optimize=True)


def arrows(panel, measure):
    """Steps down the gradient, dots where there is none."""
    places, _, steps = field(measure, COARSE)
    length = np.linalg.norm(steps, axis=-1, keepdims=True)
    none = length[..., 0] == 0
    steps = steps / np.sqrt(np.where(length == 0, 1, length) * length.max())
    # The longest reaches to the next place.
    panel.quiver(
        *places[~none].T,
        *steps[~none].T,
        angles="xy",
        scale_units="xy",
        scale=COARSE / REACH / 2,
        color="tab:red",
        width=0.005,
        headwidth=3.5,
        headlength=4,
        headaxislength=3.5,
    )
    panel.plot(*places[none].T, ".", ms=3, c="0.5")


def outline(panel, measure):
    """The target, and where the boxes overlap."""
    panel.set(xlabel="dx", xlim=(-REACH, REACH))
    if turns(measure):
        places = grid(measure, FINE)
        x, y = np.moveaxis(places, -1, 0)
        panel.contour(
            x,
            y,
            gap(measure, places),
            [0.0],
            colors="k",
            linestyles="--",
            linewidths=0.9,
        )
        degrees = np.array([-90, -45, 0, 45, 90])
        panel.set_yticks(np.radians(degrees), [f"{d}°" for d in degrees])
        panel.set_ylabel("angle")
        return
    for sides, style in [(TARGET, "-"), (TARGET + BOX, "--"), (TARGET - BOX, ":")]:
        w, h = sides / 2
        panel.plot([-w, w, w, -w, -w], [-h, -h, h, h, -h], style, c="k", lw=0.9)
    panel.set(ylabel="dy", ylim=(REACH, -REACH), aspect="equal")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for entry in members():
        draw(*entry)
    PAGE.write_text(build())
