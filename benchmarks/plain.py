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


def decoded(xp, deltas, anchors):
    """Planes of boxes from their offsets, as `torchvision` and others have them."""
    low, high = [], []
    for k in (0, 1):
        side = anchors[k + 2] - anchors[k]
        centre = deltas[k] * side + anchors[k] + side / 2
        half = xp.exp(deltas[k + 2].clip(max=math.log(1000 / 16))) * side / 2
        low.append(centre - half)
        high.append(centre + half)
    return [*low, *high]


def turned(xp, a, b):
    """IoU of boxes (cx, cy, w, h, angle) as others compute it, on planes.

    The corners of each inside the other and the crossings of all edges, 24 candidates,
    sorted by their angle round the middle of those that count.
    """
    shape = xp.broadcast_shapes(a[0].shape, b[0].shape)
    # Round the second centre: float32 would otherwise lose digits to the place.
    a, b = ((p[0] - b[0], p[1] - b[1], *p[2:]) for p in (a, b))
    p, q = (_corners(xp, box, shape) for box in (a, b))
    crossings, met = _crossings(xp, p, q)
    counts = [_inside(xp, p, b), _inside(xp, q, a), met]
    counts = xp.concatenate(counts, -1)
    number = counts.sum(-1, keepdims=True)
    points = [xp.concatenate(x, -1) for x in zip(p, q, crossings, strict=True)]
    points = [xp.where(counts, x, 0) for x in points]
    middle = [x.sum(-1, keepdims=True) / number.clip(1) for x in points]
    points = [xp.where(counts, x - y, 0) for x, y in zip(points, middle, strict=True)]
    order = xp.argsort(xp.where(counts, xp.arctan2(points[1], points[0]), 9), -1)
    points = [xp.take_along_axis(x, order, -1) for x in points]
    # Those that do not count become the first one: edges of no area.
    kept = xp.broadcast_to(xp.arange(24), counts.shape) < number
    x, y = (xp.where(kept, x, x[..., :1]) for x in points)
    shared = xp.abs((x * xp.roll(y, -1, -1) - y * xp.roll(x, -1, -1)).sum(-1)) / 2
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def _crossings(xp, p, q):
    """Where the edges of two quadrilaterals meet, (..., 16), and whether they do."""
    start, other = [x[..., None] for x in p], [x[..., None, :] for x in q]
    along = [(xp.roll(x, -1, -1) - x)[..., None] for x in p]
    across = [(xp.roll(x, -1, -1) - x)[..., None, :] for x in q]
    cross = lambda u, v: u[0] * v[1] - u[1] * v[0]  # noqa: E731
    steep = cross(along, across)
    between = [x - y for x, y in zip(other, start, strict=True)]
    safe = xp.where(steep == 0, 1, steep)
    t, u = cross(between, across) / safe, cross(between, along) / safe
    met = (steep != 0) & (t >= 0) & (t <= 1) & (u >= 0) & (u <= 1)
    flat = (*t.shape[:-2], 16)
    points = [(x + t * d).reshape(flat) for x, d in zip(start, along, strict=True)]
    return points, met.reshape(flat)


def _corners(xp, box, shape):
    x, y, w, h, angle = (xp.broadcast_to(p, shape)[..., None] for p in box)
    cos, sin = xp.cos(angle), xp.sin(angle)
    u = xp.concatenate([-w, w, w, -w], -1) / 2
    v = xp.concatenate([-h, -h, h, h], -1) / 2
    return [x + u * cos - v * sin, y + u * sin + v * cos]


def _inside(xp, points, box):
    x, y, w, h, angle = (p[..., None] for p in box)
    cos, sin = xp.cos(angle), xp.sin(angle)
    dx, dy = points[0] - x, points[1] - y
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    return (xp.abs(along) <= w / 2) & (xp.abs(across) <= h / 2)
