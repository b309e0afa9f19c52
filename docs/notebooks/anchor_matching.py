# %% [markdown]
# # Anchor matching, drawn
#
# Which anchors are to learn which target? Three assigners answer on the same small
# image, and their answers are drawn, level by level of the pyramid.
# [Matching and suppression](../assignment.md) has them inside of training code.

# %%
import functools
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import jaxiou

plt.rcParams.update({"figure.dpi": 110, "font.size": 8, "axes.titlesize": 9})

WIDTH, HEIGHT = 160, 128
strides, sizes = [8, 16, 32], [24, 48, 96]
grids = [(HEIGHT // stride, WIDTH // stride) for stride in strides]
level_sizes = [rows * columns for rows, columns in grids]
anchors = jaxiou.anchor_grid(grids, strides, sizes=sizes)
points = (anchors[:, :2] + anchors[:, 2:]) / 2

# Three targets of one class, padded to four; what padding holds does not matter.
names = ["small", "long", "large", "padding"]
targets = jnp.array(
    [
        [14.0, 10.0, 36.0, 34.0],
        [62.0, 14.0, 152.0, 36.0],
        [40.0, 48.0, 128.0, 122.0],
        [jnp.nan] * 4,
    ]
)
labels, real = jnp.zeros(4, int), jnp.array([True, True, True, False])
print(dict(zip(strides, level_sizes, strict=True)), "anchors by stride")

# %% [markdown]
# ## Anchors and targets
#
# Dots are the centres of anchors; one anchor of each level is drawn in grey. There is
# one square per cell, and none resembles the long target.

# %%
colors = ["#0072b2", "#d55e00", "#009e73"]
starts = np.cumsum([0, *level_sizes])
levels = [slice(a, b) for a, b in itertools.pairwise(starts)]


def draw_box(axis, box, **style):
    x1, y1, x2, y2 = np.asarray(box)
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **{"fill": False, **style}))


def panels():
    """One per level, with the targets."""
    _, axes = plt.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
    for axis, stride, size in zip(axes, strides, sizes, strict=True):
        axis.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0), aspect="equal")
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"stride {stride}, anchors {size} × {size}")
        for box, color in zip(targets[:3], colors, strict=True):
            draw_box(axis, box, color=color, lw=2)
    return axes


axes = panels()
for axis, level, (rows, columns) in zip(axes, levels, grids, strict=True):
    axis.plot(*np.asarray(points[level]).T, ".", color="0.6", ms=3, zorder=0)
    middle = level.start + rows // 2 * columns + columns // 2
    draw_box(axis, anchors[middle], color="0.3", ls="--")
for box, name, color in zip(targets, names, colors, strict=False):
    x, y = box[0] + 4, box[1] + 10
    axes[0].text(x, y, name, color=color, backgroundcolor="w", fontsize=7)

# %% [markdown]
# ## The best of every anchor and of every target
#
# `best_match` gives the maxima of the matrix of overlaps along both axes, and who
# attains them. It never writes the matrix, which for 100,000 boxes and 1,000 targets
# would be 400 MB.

# %%
best = jax.jit(jaxiou.best_match)(anchors, targets, where2=real)
matrix = jax.jit(jaxiou.pairwise)(anchors, targets[:3])
np.testing.assert_allclose(best.values1, matrix.max(axis=1), rtol=1e-5)
np.testing.assert_allclose(best.values2[:3], matrix.max(axis=0), rtol=1e-5)
assert best.indices2[3] == -1  # padding has no partner
for name, value, index in zip(names, best.values2, best.indices2, strict=True):
    print(f"{name:>7}: best anchor {index}, IoU {value:.2f}")

many, some = (jax.ShapeDtypeStruct((k, 4), jnp.float32) for k in (100_000, 1000))
compiled = jax.jit(jaxiou.best_match).lower(many, some).compile()
megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
print(f"{megabytes:.0f} MB beside inputs and results for 100,000 boxes × 1,000")
assert megabytes < 20

# %% [markdown]
# The best overlap of every anchor, as an image of its level:

# %%
axes = panels()
for axis, level, shape in zip(axes, levels, grids, strict=True):
    values = np.asarray(best.values1[level]).reshape(shape)
    image = axis.imshow(
        values, extent=(0, WIDTH, HEIGHT, 0), cmap="Greys", vmin=0, vmax=0.8
    )
axis.figure.colorbar(image, ax=axes, label="best IoU of the anchor", shrink=0.8)

# %% [markdown]
# ## Thresholds
#
# `match_anchors` reads that image. From 0.5 on an anchor learns its target, below 0.4
# it is background, and in between it is left out of the loss. No anchor gets there with
# the long target, whose best is 0.33, so the anchors that attain its best learn it all
# the same: `force_match`. Without that nothing would.

# %%
results = {}


def draw(found, boxes=anchors, strength=None):
    """Boxes that learn a target in its colour, with the centres of their anchors."""
    indices = np.asarray(found.indices)
    sizes = np.full(len(indices), 22) if strength is None else 4 + 40 * strength
    for axis, level in zip(panels(), levels, strict=True):
        x, y = np.asarray(points[level]).T
        index, size = indices[level], sizes[level]
        axis.plot(x, y, ".", color="0.85", ms=2, zorder=0)
        axis.plot(x[index == -2], y[index == -2], "o", color="0.4", ms=4, mfc="w")
        for k, color in enumerate(colors):
            mine = index == k
            axis.scatter(x[mine], y[mine], size[mine], color=color, zorder=3)
            for box in boxes[level][mine]:
                draw_box(axis, box, color=color, lw=0.6, alpha=0.7)


match = jax.jit(jaxiou.match_anchors, static_argnames="force_match")
results["thresholds"] = match(anchors, targets, where=real)
draw(results["thresholds"])

unforced = match(anchors, targets, where=real, force_match=False)
assert (results["thresholds"].indices == 1).sum() == 3
assert (unforced.indices == 1).sum() == 0

# %% [markdown]
# Large dots learn the target of their colour, and their anchors are drawn as thin
# boxes; grey rings are left out; small dots are background.
#
# ## A threshold for each target
#
# `match_atss` takes the nine nearest anchors of each level as candidates of a target,
# and their mean overlap plus one standard deviation as its threshold. A target that
# no anchor fits has a low threshold, so nothing is forced, and nothing left out.

# %%
match = jax.jit(functools.partial(jaxiou.match_atss, level_sizes=level_sizes))
results["ATSS"] = match(anchors, targets, where=real)
draw(results["ATSS"])

indices = results["ATSS"].indices
assert (indices != -2).all()
assert all((indices == k).any() for k in range(3))
assert results["ATSS"].values[indices == 1].max() < 0.4  # below any fixed threshold

# %% [markdown]
# ## By what is predicted
#
# `match_task_aligned` asks the detector: a prediction learns a target when it both
# scores its class and overlaps it. In place of a detector stand boxes that have gone a
# part of the way from their anchor to its nearest target, drawn at random; that part is
# their score, too.

# %%
progress = jax.random.uniform(jax.random.key(0), (len(anchors), 1), maxval=0.9)


@jax.jit
def predict(progress):
    nearest = jaxiou.best_match(anchors, targets, measure=jaxiou.giou, where2=real)
    offsets = jaxiou.encode(targets[nearest.indices1], anchors)
    return jaxiou.decode(progress * offsets, anchors)


predictions = predict(progress)
match = jax.jit(functools.partial(jaxiou.match_task_aligned, topk=8))
found = match(progress, predictions, points, labels, targets, where=real)
results["task-aligned"] = found
draw(found, predictions, strength=np.asarray(found.scores))

for k in range(3):
    mine = found.indices == k
    assert 0 < mine.sum() <= 8
    # The largest score to be learnt is the largest overlap among them.
    np.testing.assert_allclose(found.scores[mine].max(), found.values[mine].max(), 1e-5)

# %% [markdown]
# Thin boxes are predictions now, and the area of a dot is the score that its classifier
# is to learn. Every level may take part: what counts is how well a box fits, not the
# anchor it came from.
#
# ## How many learn what

# %%
print(f"{'':>12}", *[f"{name:>10}" for name in [*names, "background", "left out"]])
for title, found in results.items():
    counts = [(found.indices == k).sum() for k in [0, 1, 2, 3, -1, -2]]
    print(f"{title:>12}", *[f"{count:10d}" for count in counts])
    assert counts[3] == 0  # nothing learns the padding

# %% [markdown]
# ## Padding
#
# Shapes are fixed and counts are masks, so one compilation serves images with any
# number of targets, and what lies in a padded row, here NaN, changes nothing.

# %%
traces = []


@jax.jit
def match(targets, real):
    traces.append("one more")
    return jaxiou.match_anchors(anchors, targets, where=real)


for count in range(4):
    padded = match(targets, jnp.arange(4) < count)
    print(f"{count} targets: {(padded.indices >= 0).sum()} anchors learn")
assert len(traces) == 1
alone = match(targets[:3], real[:3])  # another shape, another compilation
assert (padded.indices == alone.indices).all()
