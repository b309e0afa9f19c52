"""Points and boxes of any layout, as planes: which lies where.

An even number of coordinates are two opposite corners, an odd one a centre, the sides
and an angle.
"""

import jax.numpy as jnp
from jaxtyping import Array

from ._measure import Measure, Planes


def as_rows(planes: Planes) -> Planes:
    return tuple(p[None, :] for p in planes)


def as_columns(planes: Planes) -> Planes:
    return tuple(p[:, None] for p in planes)


def taken(planes: Planes, index: Array) -> Planes:
    """Those of every index; of -1 some other one, or zeros, to be masked."""
    if not planes[0].size:
        return tuple(jnp.zeros(index.shape, p.dtype) for p in planes)
    return tuple(jnp.take(p, index, mode="clip") for p in planes)


def centre(boxes: Planes) -> Planes:
    """Of corners, an even number of coordinates, or of a centre, sides and an angle."""
    half = len(boxes) // 2
    if len(boxes) % 2:
        return boxes[:half]
    return tuple((a + b) / 2 for a, b in zip(boxes[:half], boxes[half:], strict=True))


def is_inside(points: Planes, boxes: Planes) -> Array:
    """Whether a point lies in the interior of a box."""
    half = len(points)
    if len(boxes) % 2 == 0:
        low, high = boxes[:half], boxes[half:]
        edges = zip(points, low, high, strict=True)
        return jnp.stack([(a < x) & (x < b) for x, a, b in edges]).all(0)
    x, y, *rest = (p - c for p, c in zip(points, boxes[:half], strict=True))
    cos, sin = jnp.cos(boxes[-1]), jnp.sin(boxes[-1])
    offsets = x * cos + y * sin, y * cos - x * sin, *rest
    sides = zip(offsets, boxes[half : 2 * half], strict=True)
    return jnp.stack([2 * jnp.abs(x) < side for x, side in sides]).all(0)


def places(points: Planes, reach: Planes, boxes: Planes) -> tuple[Array, Array]:
    """Whether a point lies inside of a box, and whether it is near the centre."""
    pairs = zip(points, centre(boxes), strict=True)
    near = jnp.stack([jnp.abs(x - c) < reach[0] for x, c in pairs]).all(0)
    return is_inside(points, boxes), near


def nearness(rows: Planes, columns: Planes) -> Array:
    """Minus the squared distance of two points."""
    pairs = zip(as_rows(rows), as_columns(columns), strict=True)
    return -jnp.stack([(a - b) ** 2 for a, b in pairs]).sum(0)


def of_pairs(
    measure: Measure, anchors: Planes, targets: Planes, chosen: Array
) -> Array:
    """`(m, k)`: the measure of each target with the anchors it chose."""
    return measure.planes(taken(anchors, chosen), as_columns(targets))


def own_values(
    measure: Measure, anchors: Planes, targets: Planes, index: Array
) -> Array:
    """`(n,)`: the measure of each anchor with its target, -inf where it has none."""
    values = measure.planes(anchors, taken(targets, index))
    return jnp.where(index >= 0, values, -jnp.inf)
