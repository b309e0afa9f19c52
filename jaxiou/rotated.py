"""Boxes that turn, `(cx, cy, w, h, angle)`, and measures of two of them.

The angle is in radians; a positive one turns +x towards +y, which is clockwise on a
screen with y down. All angles are allowed: a box is the same after half a turn, and
after a quarter of one with its sides exchanged. A box with a negative side is empty.

    0 ------- w ------ 1          The corners at angle 0, x to the right, y down:
    |                  |          0 is (cx - w/2, cy - h/2). A positive angle
    h     (cx, cy)     |          takes 1 down and 3 to the left.
    |                  |
    3 ---------------- 2
"""

__all__ = [
    "convert_angle",
    "corners",
    "from_corners",
    "rotated_diou",
    "rotated_giou",
    "rotated_iof",
    "rotated_iou",
    "to_xyxy",
]

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks, _turned
from ._measure import Planes, measure
from ._numerics import divide, fraction, nonnegative
from .boxes import pack, unpack

# How a format writes the angle: its unit and sign, and where it starts counting.
_CONVENTIONS = {
    "radians": (1.0, None),
    "degrees_ccw": (-180 / math.pi, None),
    "le90": (1.0, -math.pi / 2),
    "le135": (1.0, -math.pi / 4),
    "oc": (1.0, 0.0),
}


def _iou_and_union(a: Planes, b: Planes) -> tuple[Array, Array]:
    intersection = _turned.intersection(a, b)
    union = _turned.area(a) + _turned.area(b) - intersection
    return fraction(intersection, union), union


def _iou_vjp(
    a: Planes, b: Planes, cotangent: Array, slopes: _turned.Slopes
) -> tuple[Planes, Planes]:
    # dIoU = (dI - IoU dU) / U with U = |A| + |B| - I.
    union = _turned.area(a) + _turned.area(b) - slopes.area
    iou, per_area = fraction(slopes.area, union), divide(cotangent, union)
    return _turned.pullback(
        a, b, slopes, per_area * (1 + iou), (-per_area * iou, -per_area * iou)
    )


def _iof_vjp(
    a: Planes, b: Planes, cotangent: Array, slopes: _turned.Slopes
) -> tuple[Planes, Planes]:
    area = _turned.area(a)
    iof, per_area = fraction(slopes.area, area), divide(cotangent, area)
    nothing = jnp.zeros_like(per_area)
    return _turned.pullback(a, b, slopes, per_area, (-per_area * iof, nothing))


@measure(minimum=0.0, coordinates=5, vjp=(_turned.slopes, _iou_vjp))
def rotated_iou(a: Planes, b: Planes) -> Array:
    """Intersection over union of two boxes that turn, exact.

    IoU = I / U with I the area of the polygon that both cover.

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), any unit, radians.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1]: 1 for the same rectangle, however its angle is written,
        0 for disjoint ones. Symmetric, free of scale, position and orientation.

    At the edge:
        Empty boxes give 0, with the one-sided gradient that lets a flat one grow.
        Disjoint boxes have gradient 0. Where edges lie on each other the gradient is
        the mean of both sides. In float32 the error stays below 1e-6, except for boxes
        much longer than wide: an angle's own rounding moves a box 1000 times as long as
        wide by some 1e-5 of its width.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.rotated_iou(a, b):.5f}")
        0.34849

    Reference:
        D. Zhou, J. Fang, X. Song, C. Guan, J. Yin, Y. Dai, R. Yang, "IoU Loss for 2D/3D
        Object Detection", 2019, arXiv:1908.03851. Here by Green's theorem instead of
        sorted candidate points, whose coincidences make torchvision, detectron2 and
        mmcv return 0.3 to 0.6 for some pairs of equal boxes.
    """
    return _iou_and_union(a, b)[0]


@measure(minimum=0.0, coordinates=5, symmetric=False, vjp=(_turned.slopes, _iof_vjp))
def rotated_iof(a: Planes, b: Planes) -> Array:
    """Intersection over foreground of boxes that turn: the covered part of the first.

    IoF = area(A ∩ B) / area(A).

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), radians; their areas divide.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1]: 1 where the first box lies inside the second. Not
        symmetric.

    At the edge:
        0 where the first box is empty, or the two are disjoint.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.rotated_iof(a, b):.5f}")
        0.58146

    Reference:
        The `iof` mode of mmcv's `box_iou_rotated`.
    """
    return fraction(_turned.intersection(a, b), _turned.area(a))


@measure(minimum=-1.0, coordinates=5)
def rotated_giou(a: Planes, b: Planes) -> Array:
    """Generalised IoU of boxes that turn, with the convex hull of their corners.

    GIoU = IoU - (C - U) / C with C the area of the convex hull of all eight corners.

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), any unit, radians.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [-1, 1]: 1 for the same rectangle, towards -1 as they move apart.
        Symmetric, free of scale, position and orientation.

    At the edge:
        Disjoint boxes keep a gradient. Not equal to `giou` at angle 0: the hull of two
        rectangles is smaller than the box around them. Two empty boxes give -1, or 0
        where their hull is empty too.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.rotated_giou(a, b):.5f}")
        0.17258

    Reference:
        H. Rezatofighi, N. Tsoi, J. Gwak, A. Sadeghian, I. Reid, S. Savarese,
        "Generalized Intersection over Union", 2019, arXiv:1902.09630. Others divide by
        an axis-aligned or minimal rectangle, for want of a differentiable hull.
    """
    iou, union = _iou_and_union(a, b)
    enclosing = _turned.hull_area(_turned.pose(*_turned.bounded(a, b)))
    return iou - fraction(enclosing - union, enclosing)


@measure(minimum=-1.0, coordinates=5)
def rotated_diou(a: Planes, b: Planes) -> Array:
    """Distance IoU of boxes that turn.

    DIoU = IoU - ρ² / c² with ρ the distance of the centres and c the shorter diagonal
    of two rectangles around both boxes, one along the sides of each.

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), any unit, radians.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [-1, 1]: 1 for the same rectangle, towards -1 as they move apart.
        Symmetric, free of scale, position and orientation; `diou` where both angles
        are 0.

    At the edge:
        Disjoint boxes keep a gradient, in the angles too.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.rotated_diou(a, b):.5f}")
        0.31899

    Reference:
        Z. Zheng, P. Wang, W. Liu, J. Li, R. Ye, D. Ren, "Distance-IoU Loss", 2020,
        arXiv:1911.08287, for boxes at angle 0. Its extensions to others differ in the
        enclosing rectangle; an axis-aligned one depends on the image's orientation.
    """
    pose = _turned.pose(*_turned.bounded(a, b))
    lengths = [
        # Of the hull of the intervals d ± reach_a and 0 ± reach_b.
        jnp.maximum(d + reach_a, reach_b) - jnp.minimum(d - reach_a, -reach_b)
        for d, reach_a, reach_b in _turned.projections(pose)
    ]
    along_b, along_a = (p * p + q * q for p, q in (lengths[:2], lengths[2:]))
    distance = pose.x * pose.x + pose.y * pose.y
    return _iou_and_union(a, b)[0] - fraction(distance, jnp.minimum(along_a, along_b))


def corners(boxes: _checks.Boxes) -> Float[Array, "*batch 4 2"]:
    """The four corners of boxes that turn.

    c + R (±w/2, ±h/2), in the order (-, -), (+, -), (+, +), (-, +): at angle 0 and with
    y down that is top left, top right, bottom right, bottom left.

    Args:
        boxes: `(*batch, 5)`, (cx, cy, w, h, angle), radians.

    Returns:
        `(*batch, 4, 2)`, corners as (x, y), in the boxes' floating dtype.

    At the edge:
        Negative sides give the same four corners in another order.

    Raises:
        ValueError: on shapes that are not boxes.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.corners([3.0, 2.0, 4.0, 2.0, 0.0]))
        [[1. 1.]
         [5. 1.]
         [5. 3.]
         [1. 3.]]

    Reference:
        `rbox2poly` of mmrotate and `xywhr2xyxyxyxy` of ultralytics, which starts with
        the corner (+, +).
    """
    array = _checks.as_boxes("corners", "boxes", boxes, coordinates=5)
    cx, cy, w, h, angle = unpack(array)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    points = []
    for i, j in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):
        x, y = i * w, j * h
        points += [cx + (x * cos - y * sin), cy + (x * sin + y * cos)]
    flat = pack(points, _checks.result_dtype(array))
    return flat.reshape(*array.shape[:-1], 4, 2)


def from_corners(corners: _checks.ArrayLike) -> Float[Array, "*batch 5"]:
    """Boxes that turn, of their corners or of any quadrilateral.

    The rectangle of least area around the four points, one side of which lies along two
    of them. The sides of the first edge are preferred, so `corners` is undone.

    Args:
        corners: `(*batch, 4, 2)`, (x, y), in any order round the box.

    Returns:
        `(*batch, 5)`, (cx, cy, w, h, angle), the width along the first edge where that
        is possible, the angle in [-π, π], in the corners' floating dtype.

    At the edge:
        Four equal points are a box without sides at angle 0.

    Raises:
        ValueError: on shapes that are not four points.
        TypeError: on boolean or complex corners.

    Example:
        >>> import jaxiou
        >>> quad = [[0.0, 0.0], [4.0, 0.0], [5.0, 2.0], [1.0, 2.0]]
        >>> print(jaxiou.from_corners(quad))
        [2.5 1.  5.  2.  0. ]

    Reference:
        `poly2obb` of mmrotate, by OpenCV's `minAreaRect`. torchvision and ultralytics
        measure two edges, which is no rectangle around a trapezium.
    """
    array = _checks.as_real("from_corners", "corners", corners)
    if array.ndim < 2 or array.shape[-2:] != (4, 2):
        raise ValueError(
            f"jaxiou.from_corners: `corners` has shape {array.shape}, wanted (..., 4, "
            "2), four points (x, y); flat ones are `corners.reshape(*batch, 4, 2)`."
        )
    dtype = _checks.result_dtype(array)
    points = array.astype(_checks.arithmetic_dtype(array))
    start = points[..., :1, :]
    points = points - start
    best: list[Array] = []
    # The sides in turn, and the diagonals, which are sides of a crossed quadrilateral.
    for i, j in ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)):
        found = _rectangle_along(points, points[..., j, :] - points[..., i, :])
        if not best:
            best = found
            continue
        # By more than rounding, or the first edge of a rectangle would lose by chance.
        margin = 1 - 64 * float(jnp.finfo(points.dtype).eps)
        better = (found[0] < margin * best[0]) | jnp.isinf(best[0])
        best = [
            jnp.where(better, new, old) for new, old in zip(found, best, strict=True)
        ]
    _, cx, cy, w, h, angle = best
    return pack((cx + start[..., 0, 0], cy + start[..., 0, 1], w, h, angle), dtype)


def _rectangle_along(points: Array, direction: Array) -> list[Array]:
    """Area and box of the rectangle around the points along a direction."""
    dx, dy = direction[..., 0], direction[..., 1]
    none = (dx == 0) & (dy == 0)
    dx = jnp.where(none, 1, dx)
    length = jnp.hypot(dx, dy)
    cos, sin = (dx / length)[..., None], (dy / length)[..., None]
    along = cos * points[..., 0] + sin * points[..., 1]
    across = cos * points[..., 1] - sin * points[..., 0]
    w, h = (p.max(axis=-1) - p.min(axis=-1) for p in (along, across))
    u, v = ((p.max(axis=-1) + p.min(axis=-1)) / 2 for p in (along, across))
    cos, sin = cos[..., 0], sin[..., 0]
    # Two equal points give no direction: any other pair is preferred.
    area = jnp.where(none, jnp.inf, w * h)
    return [area, cos * u - sin * v, sin * u + cos * v, w, h, jnp.arctan2(dy, dx)]


def to_xyxy(boxes: _checks.Boxes) -> Float[Array, "*batch 4"]:
    """The axis-aligned boxes around boxes that turn.

    Half extents (w |cos| + h |sin|) / 2 and (w |sin| + h |cos|) / 2.

    Args:
        boxes: `(*batch, 5)`, (cx, cy, w, h, angle), radians.

    Returns:
        `(*batch, 4)`, xyxy, in the boxes' floating dtype.

    At the edge:
        A negative side counts as 0.

    Raises:
        ValueError: on shapes that are not boxes.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.to_xyxy([3.0, 2.0, 4.0, 2.0, 0.0]))
        [1. 1. 5. 3.]

    Reference:
        `obb2xyxy` of mmrotate.
    """
    array = _checks.as_boxes("to_xyxy", "boxes", boxes, coordinates=5)
    cx, cy, w, h, angle = unpack(array)
    cos, sin = jnp.abs(jnp.cos(angle)), jnp.abs(jnp.sin(angle))
    w, h = nonnegative(w) / 2, nonnegative(h) / 2
    across, down = w * cos + h * sin, w * sin + h * cos
    planes = (cx - across, cy - down, cx + across, cy + down)
    return pack(planes, _checks.result_dtype(array))


def convert_angle(
    boxes: _checks.Boxes, source: str, target: str
) -> Float[Array, "*batch 5"]:
    """Rewrites the angles of boxes that turn in another convention.

    "radians" turns +x towards +y, any range, as all of jaxiou; "degrees_ccw" are
    degrees the other way, counter-clockwise on a screen (torchvision, detectron2). The
    ranges of mmrotate, in radians like the first: "le90" with the longer side as width
    and the angle in [-π/2, π/2), "le135" likewise in [-π/4, 3π/4), "oc" with the angle
    in [0, π/2) and the sides as they come (OpenCV).

    Args:
        boxes: `(*batch, 5)`, (cx, cy, w, h, angle) in the source convention.
        source: the convention they have.
        target: the convention wanted.

    Returns:
        `(*batch, 5)`, the same rectangles, in the boxes' floating dtype.

    At the edge:
        Equal conventions change nothing, also where an angle is out of its range.
        OpenCV since 4.5.1 has π/2 in place of 0.

    Raises:
        ValueError: on shapes that are not boxes, or an unknown convention.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> box = [3.0, 2.0, 4.0, 6.0, 30.0]
        >>> print(jaxiou.convert_angle(box, "degrees_ccw", "le90"))
        [3.        2.        6.        4.        1.0471976]

    Reference:
        Y. Zhou et al., "MMRotate", 2022, arXiv:2204.13317, for the three ranges.
    """
    for name, value in (("source", source), ("target", target)):
        if value not in _CONVENTIONS:
            known = ", ".join(repr(key) for key in _CONVENTIONS)
            raise ValueError(
                f"jaxiou.convert_angle: `{name}` is {value!r}, wanted one of {known}."
            )
    array = _checks.as_boxes("convert_angle", "boxes", boxes, coordinates=5)
    dtype = _checks.result_dtype(array)
    if source == target:
        return array.astype(dtype)
    cx, cy, w, h, angle = unpack(array)
    angle = angle / _CONVENTIONS[source][0]
    unit, start = _CONVENTIONS[target]
    period = math.pi
    exchange = w < h
    if target == "oc":
        period = math.pi / 2
        exchange = jnp.floor(angle / period) % 2 == 1
    elif start is not None:
        angle = jnp.where(exchange, angle + math.pi / 2, angle)
    if start is not None:
        w, h = jnp.where(exchange, h, w), jnp.where(exchange, w, h)
        angle = angle - period * jnp.floor((angle - start) / period)
        # A sum that rounds up to the end of the range belongs to its beginning.
        angle = jnp.where(angle >= start + period, start, angle)
    return pack((cx, cy, w, h, angle * unit), dtype)
