# %% [markdown]
# # Box regression, drawn
#
# A box goes down to its target, under one loss after the other, and the way is drawn.
# What does a loss do while the two are apart, and what does the box look like on its
# way? [Which loss](../which_loss.md) asks more than a million boxes, and a detector;
# here there are three, to look at.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.patches import Rectangle

import jaxiou

plt.rcParams.update({"figure.dpi": 110, "font.size": 8, "axes.titlesize": 9})

target = jnp.array([3.0, 1.6, 4.4, 2.6])
starts = {
    "overlapping": jnp.array([2.2, 0.6, 3.4, 2.2]),
    "apart along x": jnp.array([0.2, 1.4, 1.0, 2.8]),
    "apart along both": jnp.array([0.0, 0.2, 1.4, 1.2]),
}
boxes = jnp.stack(list(starts.values()))
overlap = jax.jit(lambda boxes: jaxiou.iou(boxes, target))
before = overlap(boxes)
print("IoU at the start:", before)
assert before[0] > 0 and (before[1:] == 0).all()

# %% [markdown]
# ## The descent
#
# What is learnt are centre and sides, `(cx, cy, w, h)`, in 3,000 steps of gradient
# descent whose rate falls from 0.02 to 0 along a cosine. Losses of the overlap compare
# boxes. Smooth L1 compares the four numbers, each for itself. The boxes do not know of
# each other, so one run serves all three.

# %%
STEPS, RATE = 3000, 0.02


def of(loss):
    """A loss of boxes as one of centre and sides."""
    return lambda state: loss(jaxiou.convert(state, "cxcywh", "xyxy"), target)


def smooth_l1(state):
    wanted = jaxiou.convert(target, "xyxy", "cxcywh")
    return optax.huber_loss(state, wanted[None]).sum(axis=-1)


losses = {
    "iou": of(jaxiou.iou_loss),
    "giou": of(jaxiou.giou_loss),
    "diou": of(jaxiou.diou_loss),
    "ciou": of(jaxiou.ciou_loss),
    "smooth L1": smooth_l1,
}


@functools.partial(jax.jit, static_argnums=0)
def descend(loss):
    """The boxes at every step, (STEPS + 1, 3, 4)."""
    optimizer = optax.sgd(optax.cosine_decay_schedule(RATE, STEPS))

    def step(carry, _):
        state, memory = carry
        slope = jax.grad(lambda x: loss(x).sum())(state)
        updates, memory = optimizer.update(slope, memory)
        return (optax.apply_updates(state, updates), memory), state

    state = jaxiou.convert(boxes, "xyxy", "cxcywh")
    carry = state, optimizer.init(state)
    _, path = jax.lax.scan(step, carry, length=STEPS + 1)
    return jaxiou.convert(path, "cxcywh", "xyxy")


paths = {name: descend(loss) for name, loss in losses.items()}

# %% [markdown]
# ## The way
#
# The filled box is the target, the dashed one the start. The outlines are 100 steps
# apart, from light to dark.

# %%


def draw_box(axis, box, **style):
    x1, y1, x2, y2 = np.asarray(box)
    style = {"fill": False, **style}
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))


def draw_target(axis):
    draw_box(axis, target, fill=True, color="#f5c9b0", lw=0)
    axis.set(xlim=(-0.6, 4.9), ylim=(3.6, -0.5), aspect="equal", xticks=[], yticks=[])


figure, axes = plt.subplots(3, 5, figsize=(10, 4.8), layout="constrained")
for (name, path), column in zip(paths.items(), axes.T, strict=True):
    column[0].set_title(name)
    for k, axis in enumerate(column):
        draw_target(axis)
        drawn = path[::100, k]
        shades = plt.cm.viridis_r(np.linspace(0.05, 1.0, len(drawn)) ** 0.5)
        for box, shade in zip(drawn, shades, strict=True):
            draw_box(axis, box, color=shade, lw=0.7)
        draw_box(axis, boxes[k], color="k", lw=1, ls="--")
for label, axis in zip(starts, axes[:, 0], strict=True):
    axis.set_ylabel(label)

# %% [markdown]
# `iou` leaves a box that does not overlap exactly where it is. `giou` stretches the
# box towards the target, which fills the hull of the two, and trims it once it covers
# the target. `diou` and `ciou` move the centre, but blow the box up in both directions
# as well: their distance is divided by the diagonal of the hull, so that a longer
# diagonal is a smaller loss. Smooth L1 takes no detour.

# %%
areas = {name: np.asarray(jaxiou.area(path)) for name, path in paths.items()}
largest = {name: area.max(axis=0) / area[0] for name, area in areas.items()}
print("largest area on the way, in areas of the start")
for name, ratios in largest.items():
    print(f"{name:>9}", "  ".join(f"{ratio:4.1f}" for ratio in ratios))

assert (paths["iou"][:, 1:] == paths["iou"][0, 1:]).all()  # exactly
assert (largest["giou"][1:] > 2).all() and (largest["diou"][1:] > 2).all()

# %% [markdown]
# ## Overlap, step by step

# %%
overlaps = {name: overlap(path) for name, path in paths.items()}
colors = ["0.5", "#0072b2", "#e69f00", "#009e73", "#cc79a7"]
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained", sharey=True)
for k, (label, axis) in enumerate(zip(starts, axes, strict=True)):
    for (name, values), color in zip(overlaps.items(), colors, strict=True):
        style = "--" if name == "ciou" else "-"
        axis.plot(values[:, k], style, color=color, lw=0.9, label=name)
    axis.set(title=label, xlabel="step")
    axis.grid(alpha=0.3)
axes[0].set_ylabel("IoU with the target")
axes[0].legend()

after = {name: values[-1] for name, values in overlaps.items()}
assert (after["iou"][1:] == 0).all()
assert all((after[name] > 0.99).all() for name in losses if name != "iou")

# %% [markdown]
# All but `iou` arrive from everywhere. The overlap trembles until the rate has fallen:
# like the absolute value, these losses have a kink at the target, and their slope
# beside it does not fade. That of smooth L1 does.

# %%
beside = jaxiou.convert(target, "xyxy", "cxcywh")[None] + 0.001
for name, loss in losses.items():
    gradient = jax.jit(jax.grad(lambda state, loss=loss: loss(state).sum()))(beside)
    slope = np.linalg.norm(gradient)
    print(f"{name:>9}: slope {slope:.3f} beside the target")
    assert slope < 0.01 if name == "smooth L1" else slope > 1

# %% [markdown]
# ## What each edge is told
#
# The boxes as they start, with an arrow on each edge: where a step down the gradient
# takes it. Lengths compare within a panel.

# %%
measures = [jaxiou.iou, jaxiou.giou, jaxiou.diou]


@functools.partial(jax.jit, static_argnums=0)
def steps_down(measure, boxes):
    """Minus the gradient, (n, 4)."""

    def loss(boxes):
        return jaxiou.box_loss(boxes, target, measure=measure).sum()

    return -jax.grad(loss)(boxes)


edges = {measure: np.asarray(steps_down(measure, boxes)) for measure in measures}

figure, axes = plt.subplots(3, 3, figsize=(8, 6), layout="constrained")
for measure, column in zip(measures, axes.T, strict=True):
    column[0].set_title(f"1 - {measure.__name__}")
    for box, steps, axis in zip(boxes, edges[measure], column, strict=True):
        draw_target(axis)
        draw_box(axis, box, color="k", lw=1)
        if not steps.any():
            axis.text(*box[:2] - 0.1, "no gradient", color="#d55e00")
            continue
        (x1, y1, x2, y2), (left, up, right, down) = np.asarray(box), steps
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        axis.quiver(
            [x1, x, x2, x],
            [y, y1, y, y2],
            [left, 0, right, 0],
            [0, up, 0, down],
            color="#d55e00",
            angles="xy",
            scale_units="xy",
            scale=abs(steps).max(),
            width=0.012,
        )
for label, axis in zip(starts, axes[:, 0], strict=True):
    axis.set_ylabel(label)

# %% [markdown]
# Here is why boxes grow. In the second row `giou` pushes the left and the right edge
# outwards, into the hull, and draws in the others, which reach beyond the target.
# `diou` pushes all four outwards.

# %%
left, up, right, down = edges[jaxiou.giou][1]
assert left < 0 < right and down < 0 < up
left, up, right, down = edges[jaxiou.diou][1]
assert left < 0 < right and up < 0 < down
assert (edges[jaxiou.iou][1:] == 0).all()

# %% [markdown]
# ## Where the pull reaches
#
# A box of 1 × 1 is put at many places around the target, its centre at the root of the
# arrow. Within the dashed line the two overlap. Arrows are steps down for the centre;
# their length is the root of the slope, so that short ones are seen.

# %%
x, y = np.meshgrid(np.linspace(0.2, 7.2, 15), np.linspace(-0.95, 5.05, 13))
centres = np.stack([x, y], -1)
placed = jnp.asarray(np.concatenate([centres - 0.5, centres + 0.5], -1))
figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for measure, axis in zip(measures, axes, strict=True):
    steps = np.asarray(steps_down(measure, placed))
    pull = steps[..., :2] + steps[..., 2:]
    slope = np.linalg.norm(pull, axis=-1)
    some = slope > 0
    draw_box(axis, target, fill=True, color="#f5c9b0", lw=0)
    draw_box(axis, target + jnp.array([-0.5, -0.5, 0.5, 0.5]), color="k", ls="--")
    arrows = pull[some] / np.sqrt(slope[some] * slope.max())[:, None]
    axis.quiver(
        *centres[some].T, *arrows.T, color="#0072b2", angles="xy", scale=14, width=0.005
    )
    axis.plot(*centres[~some].T, ".", color="0.6", ms=3)
    axis.set(title=f"1 - {measure.__name__}", xlim=(-0.2, 7.6), ylim=(5.5, -1.3))
    axis.set(aspect="equal", xticks=[], yticks=[])

    apart = np.asarray(overlap(placed)) == 0
    assert not some[apart].any() if measure is jaxiou.iou else some.all()

# %% [markdown]
# Grey dots have no gradient: outside of the dashed line `iou` draws from nowhere, the
# others from everywhere. [Pictures of measures](../measure_pictures.md) has such a
# field of every measure.
