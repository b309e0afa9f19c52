"""The formulas as one would first write them, for any array library `xp`.

What the implementations of the other libraries, and "naive JAX", are made of. Planes
are coordinates `(x1, y1, x2, y2)` that broadcast.
"""

import math


def textbook(xp, a, b):
    """The matrix of IoU as most projects have it, through `(n, m, 2)`."""
    low = xp.maximum(a[:, None, :2], b[None, :, :2])
    high = xp.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = (high - low).clip(0)
    shared = sides[..., 0] * sides[..., 1]
    return shared / (_area(a.T)[:, None] + _area(b.T)[None, :] - shared)


def matrix(xp, a, b):
    """The same on planes, `(n, 1)` against `(1, m)`."""
    return iou(xp, [a[:, k, None] for k in range(4)], [b[None, :, k] for k in range(4)])


def _area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def _span(xp, a, b, low, high):
    """Sides of the box between the `low` and the `high` of two boxes' corners."""
    return high(a[2], b[2]) - low(a[0], b[0]), high(a[3], b[3]) - low(a[1], b[1])


def _shared_and_union(xp, a, b):
    width, height = _span(xp, a, b, xp.maximum, xp.minimum)
    shared = width.clip(0) * height.clip(0)
    return shared, _area(a) + _area(b) - shared


def iou(xp, a, b, stop=None):
    shared, union = _shared_and_union(xp, a, b)
    return shared / union


def giou(xp, a, b, stop=None):
    shared, union = _shared_and_union(xp, a, b)
    width, height = _span(xp, a, b, xp.minimum, xp.maximum)
    hull = width * height
    return shared / union - (hull - union) / hull


def diou(xp, a, b, stop=None):
    width, height = _span(xp, a, b, xp.minimum, xp.maximum)
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    return iou(xp, a, b) - (dx * dx + dy * dy) / (width * width + height * height)


def ciou(xp, a, b, stop):
    """`stop` keeps a factor constant in the gradient."""
    first, second = (xp.arctan((x[2] - x[0]) / (x[3] - x[1])) for x in (a, b))
    v = 4 / math.pi**2 * (second - first) * (second - first)
    alpha = stop(v / (1 - iou(xp, a, b) + v))
    return diou(xp, a, b) - alpha * v
