"""Boxes with depth, and intervals: the same measures in one and three dimensions.

Axis-aligned boxes are `(x1, y1, z1, x2, y2, z2)`. Boxes that stand on the ground and
turn about the vertical are `(cx, cy, cz, dx, dy, dz, yaw)` with the geometric centre;
yaw in radians turns +x towards +y. Intervals are `(t1, t2)`. An inverted or negative
extent is empty.

    z   y                from above: the rectangle (cx, cy, dx, dy, yaw),
    |  /                 from the side: the interval cz - dz/2 to cz + dz/2
    | /
    |/_____ x
"""

__all__ = [
    "bev_iou",
    "diou_3d",
    "giou_3d",
    "interval_iou",
    "iou_3d",
    "yaw_giou_3d",
    "yaw_iou_3d",
]

import functools
import operator
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import _turned
from ._measure import Planes, measure
from ._numerics import divide, fraction, hull, nonnegative, overlap

Interval = tuple[Array, Array]


class _Extents(NamedTuple):
    """Of two boxes: what they share, what each has, and what is around both."""

    shared: Array
    first: Array
    second: Array
    around: Array


def _product(factors: Iterable[Array]) -> Array:
    return functools.reduce(operator.mul, factors)


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, terms)


def _axes(box: Planes) -> list[Interval]:
    """Begin and end of a box along each axis, in any number of dimensions."""
    dimensions = len(box) // 2
    return list(zip(box[:dimensions], box[dimensions:], strict=True))


def _along(one: Interval, other: Interval, first: Array, second: Array) -> _Extents:
    """Two intervals and their lengths in units of their hull: volumes leave float32.

    The unit is constant in the derivative, since ratios of volumes do not depend on it.
    """
    around = hull(*one, *other)
    unit = jax.lax.stop_gradient(around)
    lengths = (overlap(*one, *other), first, second, around)
    return _Extents(*(divide(length, unit) for length in lengths))


def _volumes(a: Planes, b: Planes) -> _Extents:
    """Volumes of axis-aligned boxes as parts of the volume around both."""
    along = [
        _along(p, q, nonnegative(p[1] - p[0]), nonnegative(q[1] - q[0]))
        for p, q in zip(_axes(a), _axes(b), strict=True)
    ]
    return _Extents(*(_product(factors) for factors in zip(*along, strict=True)))


def _iou(extents: _Extents) -> Array:
    return fraction(extents.shared, extents.first + extents.second - extents.shared)


def _giou(extents: _Extents) -> Array:
    union = extents.first + extents.second - extents.shared
    return _iou(extents) - fraction(extents.around - union, extents.around)


@measure(minimum=0.0, coordinates=6)
def iou_3d(a: Planes, b: Planes) -> Array:
    """Intersection over union of two axis-aligned boxes in space.

    IoU = I / U with I the common volume, U = V₁ + V₂ - I.

    Args:
        boxes1: `(*batch, 6)`, (x1, y1, z1, x2, y2, z2), any unit.
        boxes2: `(*batch, 6)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1]: 1 for identical boxes, 0 for disjoint ones. Symmetric,
        free of position and of the scale of every axis.

    At the edge:
        As for `iou`: touching boxes and empty ones give 0, flat ones keep the one-sided
        gradient that lets them grow.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.iou_3d([0, 0, 0, 4.0, 2, 3], [1, 1, 1, 5.0, 3, 4]))
        0.14285715

    Reference:
        P. Jaccard, 1912; `axis_aligned_bbox_overlaps_3d` of mmdetection3d.
    """
    return _iou(_volumes(a, b))


@measure(minimum=-1.0, coordinates=6)
def giou_3d(a: Planes, b: Planes) -> Array:
    """Generalised IoU of two axis-aligned boxes in space.

    GIoU = IoU - (C - U) / C with C the volume of the smallest box around both.

    Args:
        boxes1: `(*batch, 6)`, (x1, y1, z1, x2, y2, z2), any unit.
        boxes2: `(*batch, 6)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [-1, 1]: 1 for identical boxes, towards -1 as they move apart.
        Symmetric, free of position and of the scale of every axis.

    At the edge:
        Disjoint boxes keep a gradient. Two empty boxes give -1, or 0 where the box
        around both is empty too.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> value = jaxiou.giou_3d([0, 0, 0, 4.0, 2, 3], [1, 1, 1, 5.0, 3, 4])
        >>> print(f"{value:.5f}")
        -0.15714

    Reference:
        H. Rezatofighi et al., 2019, arXiv:1902.09630.
    """
    return _giou(_volumes(a, b))


@measure(minimum=-1.0, coordinates=6)
def diou_3d(a: Planes, b: Planes) -> Array:
    """Distance IoU of two axis-aligned boxes in space.

    DIoU = IoU - ρ² / c² with ρ the distance of the centres and c the diagonal of the
    smallest box around both.

    Args:
        boxes1: `(*batch, 6)`, (x1, y1, z1, x2, y2, z2), one unit for all axes.
        boxes2: `(*batch, 6)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [-1, 1]: 1 for identical boxes, towards -1 as they move apart.
        Symmetric, free of scale and position.

    At the edge:
        Disjoint boxes keep a gradient. Identical points give 0.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> value = jaxiou.diou_3d([0, 0, 0, 4.0, 2, 3], [1, 1, 1, 5.0, 3, 4])
        >>> print(f"{value:.5f}")
        0.08286

    Reference:
        Z. Zheng, P. Wang, W. Liu, J. Li, R. Ye, D. Ren, 2020, arXiv:1911.08287.
    """
    pairs = list(zip(_axes(a), _axes(b), strict=True))
    distance = _sum((((p - r) + (q - s)) / 2) ** 2 for (p, q), (r, s) in pairs)
    diagonal = _sum(hull(*one, *other) ** 2 for one, other in pairs)
    return _iou(_volumes(a, b)) - fraction(distance, diagonal)


@measure(minimum=0.0, coordinates=2)
def interval_iou(a: Planes, b: Planes) -> Array:
    """Intersection over union of two intervals, such as actions in time.

    IoU = |A ∩ B| / |A ∪ B|.

    Args:
        boxes1: `(*batch, 2)`, (t1, t2), any unit.
        boxes2: `(*batch, 2)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1]: 1 for identical intervals, 0 for disjoint ones.
        Symmetric, free of scale and position.

    At the edge:
        Touching and empty intervals give 0; one without length keeps the one-sided
        gradient that lets it grow.

    Raises:
        ValueError: on shapes that are not intervals or do not broadcast.
        TypeError: on boolean or complex intervals.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.interval_iou([1.0, 5.0], [[2.0, 7.0], [5.0, 6.0]]))
        [0.5 0. ]

    Reference:
        The temporal IoU ("tIoU") of F. Caba Heilbron, V. Escorcia, B. Ghanem,
        J. C. Niebles, "ActivityNet", 2015.
    """
    return _iou(_volumes(a, b))


def _standing(box: Planes) -> tuple[Planes, Array, Array]:
    """The rectangle seen from above, the height of the centre, the vertical extent."""
    cx, cy, cz, dx, dy, dz, yaw = box
    return (cx, cy, dx, dy, yaw), cz, nonnegative(dz)


def _vertical(a: Planes, b: Planes) -> _Extents:
    (_, za, da), (_, zb, db) = _standing(a), _standing(b)
    # About the centre of B: ends of boxes high above the origin would lose digits.
    z = za - zb
    # In the second place, where `larger` and `smaller` keep the NaN of a height.
    return _along((-db / 2, db / 2), (z - da / 2, z + da / 2), da, db)


def _yaw_volumes(a: Planes, b: Planes, *, around: bool) -> _Extents:
    """Areas from above times vertical parts of the height around both."""
    above_a, above_b = _standing(a)[0], _standing(b)[0]
    vertical = _vertical(a, b)
    hull_area = jnp.zeros(())
    if around:
        hull_area = _turned.hull_area(_turned.pose(*_turned.bounded(above_a, above_b)))
    areas = _Extents(
        _turned.intersection(above_a, above_b),
        _turned.area(above_a),
        _turned.area(above_b),
        hull_area,
    )
    return _Extents(*(p * q for p, q in zip(areas, vertical, strict=True)))


@measure(minimum=0.0, coordinates=7)
def yaw_iou_3d(a: Planes, b: Planes) -> Array:
    """Intersection over union of two boxes that turn about the vertical, exact.

    IoU = I / U with I the common area from above times the common height.

    Args:
        boxes1: `(*batch, 7)`, (cx, cy, cz, dx, dy, dz, yaw), any unit, radians.
        boxes2: `(*batch, 7)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1]: 1 for the same box, 0 for disjoint ones. Symmetric, free
        of scale, position and heading.

    At the edge:
        As for `rotated_iou`.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 1, 6.0, 2.0, 2, 0.5], [4.0, 3.0, 1.5, 5.0, 3.0, 2, -0.2]
        >>> print(f"{jaxiou.yaw_iou_3d(a, b):.5f}")
        0.24042

    Reference:
        D. Zhou et al., "IoU Loss for 2D/3D Object Detection", 2019, arXiv:1908.03851.
        KITTI boxes have the bottom as centre and y down: convert them first.
    """
    return _iou(_yaw_volumes(a, b, around=False))


@measure(minimum=-1.0, coordinates=7)
def yaw_giou_3d(a: Planes, b: Planes) -> Array:
    """Generalised IoU of two boxes that turn about the vertical.

    GIoU = IoU - (C - U) / C with C the convex hull's area from above times the height
    around both.

    Args:
        boxes1: `(*batch, 7)`, (cx, cy, cz, dx, dy, dz, yaw), any unit, radians.
        boxes2: `(*batch, 7)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [-1, 1]: 1 for the same box, towards -1 as they move apart.
        Symmetric, free of scale, position and heading.

    At the edge:
        Disjoint boxes keep a gradient.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 1, 6.0, 2.0, 2, 0.5], [4.0, 3.0, 1.5, 5.0, 3.0, 2, -0.2]
        >>> print(f"{jaxiou.yaw_giou_3d(a, b):.5f}")
        -0.04287

    Reference:
        H. Rezatofighi et al., 2019, arXiv:1902.09630; the prism around both as in
        arXiv:1908.03851, there over a rectangle.
    """
    return _giou(_yaw_volumes(a, b, around=True))


@measure(minimum=0.0, coordinates=7)
def bev_iou(a: Planes, b: Planes) -> Array:
    """Intersection over union as seen from above ("bird's eye view").

    `rotated_iou` of (cx, cy, dx, dy, yaw).

    Args:
        boxes1: `(*batch, 7)`, (cx, cy, cz, dx, dy, dz, yaw), any unit, radians.
        boxes2: `(*batch, 7)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1]; heights do not matter.

    At the edge:
        As for `rotated_iou`.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 1, 6.0, 2.0, 2, 0.5], [4.0, 3.0, 1.5, 5.0, 3.0, 2, -0.2]
        >>> print(f"{jaxiou.bev_iou(a, b):.5f}")
        0.34849

    Reference:
        A. Geiger, P. Lenz, R. Urtasun, "Are we ready for Autonomous Driving? The KITTI
        Vision Benchmark Suite", 2012.
    """
    above_a, above_b = _standing(a)[0], _standing(b)[0]
    shared = _turned.intersection(above_a, above_b)
    return fraction(shared, _turned.area(above_a) + _turned.area(above_b) - shared)
