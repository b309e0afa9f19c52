"""The long tail: published variants of IoU, each a formula on one pair of boxes.

They are written as printed, guarded by selection instead of an `eps`. A formula of the
form "IoU minus penalties" returns these terms, so that the combinators of
`jaxiou.combinators` can work on them. A `minimum` that is no simple number is rounded
down to one of bfloat16, in which results may come.
"""

__all__ = [
    "bounded_iou",
    "extended_iou",
    "mpdiou",
    "piou",
    "piou_v2",
    "shape_iou",
    "siou",
    "smooth_iou",
    "wiou",
]

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import _checks
from ._measure import Planes, measure
from ._numerics import divide, fraction, largest, nonnegative, power, saturate
from .measures import (
    _area,
    _centre_offset,
    _hull,
    _intersection,
    _iou_and_union,
    _sides,
)


def _difference(x: Array, y: Array) -> Array:
    """|x - y| / max(x, y) of two lengths, in [0, 1]."""
    return fraction(jnp.abs(x - y), jnp.maximum(x, y))


def _saturating(x: Array) -> Array:
    """(1 - e^-x)⁴, the shape cost of SIoU for a relative difference of sides."""
    return (1 - jnp.exp(-x)) ** 4


@measure(minimum=-1.03125)
def siou(a: Planes, b: Planes) -> Planes:
    """SCYLLA-IoU: IoU minus the mean of a distance cost and a shape cost.

    SIoU = IoU - (Δ + Ω) / 2, Δ = Σ (1 - exp(-(2 - Λ) (d / C)²)) over both axes with d
    the distance of the centres along the axis, C the side of the smallest box around
    both and Λ = 2 |dx| |dy| / (dx² + dy²) the angle cost; Ω = Σ (1 - exp(-ω))⁴ with ω
    the difference of the sides over the longer one.

    Args:
        boxes1: `(*batch, 4)`, xyxy, any unit.
        boxes2: `(*batch, 4)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [-1.03, 1]: 1 for identical boxes, less the farther they are
        apart. Symmetric, free of scale and position.

    At the edge:
        Disjoint boxes keep a gradient. Coinciding centres have no angle: Λ is 0 and
        does not matter. Identical points give 0.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.siou([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.10968816

    Reference:
        Z. Gevorgyan, "SIoU Loss: More Powerful Learning for Bounding Box Regression",
        2022, arXiv:2205.12740, where Λ is written with sin and arcsin, θ = 4.
        mmdetection has the wrong sign in Δ by default (`neg_gamma=False`): a box far
        away then has loss 0.
    """
    (dx, dy), (width, height) = _centre_offset(a, b), _hull(a, b)
    dx, dy = jnp.abs(dx), jnp.abs(dy)
    # Offsets over the longer one: their squares neither vanish nor overflow.
    u, v = (fraction(d, jnp.maximum(dx, dy)) for d in (dx, dy))
    gamma = 2 - divide(2 * u * v, u * u + v * v)
    x, y = fraction(dx, width), fraction(dy, height)
    distance = (1 - jnp.exp(-gamma * x * x)) + (1 - jnp.exp(-gamma * y * y))
    (w1, h1), (w2, h2) = _sides(a), _sides(b)
    shape = _saturating(_difference(w1, w2)) + _saturating(_difference(h1, h2))
    return _iou_and_union(a, b)[0], (distance + shape) / 2


def _extended(a: Planes, b: Planes) -> Array:
    """EIoU of Peng & Yu: the gaps of disjoint boxes count as negative overlap."""
    x1, y1, x2, y2 = zip(a, b, strict=True)
    # An inverted box is empty: it ends where it begins.
    right, bottom = (
        jnp.minimum(*(jnp.where(end < start, start, end) for start, end in edges))
        for edges in (tuple(zip(x1, x2, strict=True)), tuple(zip(y1, y2, strict=True)))
    )
    left, top = jnp.maximum(*x1), jnp.maximum(*y1)
    first_x, first_y = jnp.minimum(*x1), jnp.minimum(*y1)
    gaps = nonnegative(left - right) * ((top - first_y) + (bottom - first_y))
    gaps += nonnegative(top - bottom) * ((left - first_x) + (right - first_x))
    shared = _intersection(a, b)
    union = _area(a) + _area(b) - shared + gaps
    # A gap changes by a side of the hull per unit: beside a smaller union the slope
    # would be infinite, and a sum of such ones NaN.
    steepest = float(jnp.finfo(union.dtype).max) / 32
    least = jax.lax.stop_gradient(jnp.maximum(*_hull(a, b)) / steepest)
    union = jnp.where(union < least, least, union)
    return fraction(shared, union) - fraction(gaps, union)


@measure(minimum=-1.0)
def extended_iou(a: Planes, b: Planes) -> Array:
    """Extended IoU: IoU whose intersection is negative for boxes apart.

    EIoU = I / (area(A) + area(B) - I). Measured from the first left and the first top
    edge, let the later box begin at X₁, Y₁ and the earlier one end at X₂, Y₂. Then I =
    (X₂ - X₁)(Y₂ - Y₁) for overlapping boxes, (X₂ - X₁)(Y₁ + Y₂) for boxes apart in x
    alone, likewise in y, and 2 (X₂ Y₂ - X₁ Y₁) for boxes apart in both.

    Args:
        boxes1: `(*batch, 4)`, xyxy, any unit.
        boxes2: `(*batch, 4)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [-1, 1]: the IoU of overlapping boxes, towards -1 as they move
        apart. Symmetric, free of scale and position.

    At the edge:
        Touching boxes give 0. Along every axis on which they are apart the gradient is
        not zero and brings them together, at any distance. Along an axis on which they
        overlap it prefers the upper left: mirrored boxes have another value where they
        are apart, as published.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.extended_iou([0.0, 0.0, 4.0, 2.0], [6.0, 1.0, 9.0, 4.0]))
        -0.26086956

    Reference:
        H. Peng, S. Yu, "A Systematic IoU-Related Method: Beyond Simplified Regression
        for Better Localization", 2021, arXiv:2112.01793, in the form of the authors'
        code. Not the Efficient IoU, `eiou`.
    """
    return _extended(a, b)


def _smooth_given(*, point: float) -> dict[str, Any]:
    _checks.number("smooth_iou", "point", point, above=0, most=2, default="0.1")
    return {}


@measure(minimum=-1.0, given=_smooth_given)
def smooth_iou(a: Planes, b: Planes, *, point: float = 0.1) -> Array:
    """Extended IoU, flattened where the boxes nearly fit.

    1 - S(1 - EIoU) with EIoU the `extended_iou` and S(x) = x² / (2 point) below the
    point, x - point / 2 above: the gradient vanishes at the optimum.

    Args:
        point: value of 1 - EIoU at which the parabola goes over into the line, in
            (0, 2].

    Returns:
        A measure in (-1, 1]: 1 for identical boxes. Symmetric, free of scale
        and position.

    At the edge:
        As `extended_iou`: boxes apart keep a gradient at any distance.

    Raises:
        ValueError: on a point that is not in (0, 2].
        TypeError: on an array as parameter.

    Example:
        >>> import jaxiou
        >>> measure = jaxiou.smooth_iou(point=0.1)
        >>> print(measure([0.0, 0.0, 4.0, 2.0], [6.0, 1.0, 9.0, 4.0]))
        -0.21086955

    Reference:
        H. Peng, S. Yu, "A Systematic IoU-Related Method: Beyond Simplified Regression
        for Better Localization", 2021, arXiv:2112.01793. Its loss is the `eiou_loss` of
        mmdetection with `smooth_point=point`. Adding a constant to both areas of the
        IoU does not give disjoint boxes a gradient in their position.
    """
    distance = 1 - _extended(a, b)
    below = distance < point
    return 1 - jnp.where(below, distance * distance / (2 * point), distance - point / 2)


@measure(minimum=0.0, symmetric=False)
def bounded_iou(a: Planes, b: Planes) -> Array:
    """Bounded IoU: the mean of four upper bounds of the IoU, one per coordinate.

    The bound of a coordinate is the best IoU that boxes with this coordinate can have:
    max(0, (w₂ - 2 |dx|) / (w₂ + 2 |dx|)) for the centre, min(w₁, w₂) / max(w₁, w₂) for
    the width, likewise in y.

    Args:
        boxes1: `(*batch, 4)`, xyxy, the predictions.
        boxes2: `(*batch, 4)`, xyxy, the targets; leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1]: 1 for identical boxes. Not symmetric; free of scale and
        position.

    At the edge:
        The centre has no gradient where it is farther than half a target away. An empty
        target gives 0.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.bounded_iou([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.4791667

    Reference:
        L. Tychsen-Smith, L. Petersson, "Improving Object Localization with Fitness NMS
        and Bounded IoU Loss", 2017, arXiv:1711.00164. mmdetection returns a smooth-L1
        of each of the four numbers 1 - bound, without a reduction.
    """
    (w1, h1), (w2, h2), (dx, dy) = _sides(a), _sides(b), _centre_offset(a, b)
    total = jnp.zeros((), w1.dtype)
    for own, target, offset in ((w1, w2, dx), (h1, h2, dy)):
        twice = 2 * jnp.abs(offset)
        total += fraction(nonnegative(target - twice), target + twice)
        total += fraction(jnp.minimum(own, target), jnp.maximum(own, target))
    return total / 4


def _mpdiou_given(*, image_size: tuple[float, float]) -> dict[str, Any]:
    if not isinstance(image_size, tuple) or len(image_size) != 2:
        raise ValueError(
            f"jaxiou.mpdiou: `image_size` is {image_size!r}, wanted width and height "
            "of the image in the unit of the boxes, as in `image_size=(640, 480)`."
        )
    for side in image_size:
        _checks.number("mpdiou", "image_size", side, above=0, default="(640, 480)")
    return {}


@measure(scale_free=False, given=_mpdiou_given)
def mpdiou(a: Planes, b: Planes, *, image_size: tuple[float, float]) -> Planes:
    """Minimum point distance IoU: IoU minus the distances of two corners.

    MPDIoU = IoU - d₁² / (W² + H²) - d₂² / (W² + H²) with d₁ the distance of the upper
    left corners, d₂ that of the lower right ones and W, H the sides of the image.

    Args:
        image_size: width and height of the image, in the unit of the boxes (1, 1 for
            relative coordinates).

    Returns:
        A measure in [-1, 1] for boxes inside the image, unbounded below outside of it:
        1 for identical boxes. Symmetric; changes with the scale of the boxes.

    At the edge:
        Disjoint boxes keep a gradient. Identical points give 0.

    Raises:
        ValueError: on an image size that is not two positive numbers.
        TypeError: on an array as parameter.

    Example:
        >>> import jaxiou
        >>> measure = jaxiou.mpdiou(image_size=(16, 12))
        >>> print(measure([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.19928572

    Reference:
        S. Ma, Y. Xu, "MPDIoU: A Loss for Efficient and Accurate Bounding Box
        Regression", 2023, arXiv:2307.07662. Copies exist with the size of the feature
        map, the diagonal of the hull or a constant in place of the image.
    """
    diagonal = math.hypot(*image_size)
    limit = largest(a[0].dtype)
    x1, y1, x2, y2 = (
        saturate((p - q) / diagonal, limit) for p, q in zip(a, b, strict=True)
    )
    return _iou_and_union(a, b)[0], x1 * x1 + y1 * y1, x2 * x2 + y2 * y2


def _shape_given(*, scale: float) -> dict[str, Any]:
    _checks.number("shape_iou", "scale", scale, least=0, default="0.0")
    return {}


@measure(minimum=-2.28125, symmetric=False, given=_shape_given)
def shape_iou(a: Planes, b: Planes, *, scale: float = 0.0) -> Planes:
    """Shape-IoU: distance and shape costs weighted by the shape of the target.

    IoU - (h dx² + w dy²) / c² - ½ Σ (1 - exp(-ω))⁴ with w = 2 w₂ˢ / (w₂ˢ + h₂ˢ), h = 2
    h₂ˢ / (w₂ˢ + h₂ˢ), ω = h |w₁ - w₂| / max(w₁, w₂) for the width and w |h₁ - h₂| /
    max(h₁, h₂) for the height.

    Args:
        scale: the exponent s, chosen by the size of the objects of a data set; 0 makes
            both weights 1.

    Returns:
        A measure in [-2.28, 1]: 1 for identical boxes. Not symmetric, the weights are
        those of the second box; free of scale and position.

    At the edge:
        Disjoint boxes keep a gradient. Identical points give 0. A scale below 1 makes
        the weight of a side flat where it is shorter than a millionth of the other.

    Raises:
        ValueError: on a negative scale.
        TypeError: on an array as parameter.

    Example:
        >>> import jaxiou
        >>> measure = jaxiou.shape_iou(scale=0.5)
        >>> print(measure([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.13173527

    Reference:
        H. Zhang, S. Zhang, "Shape-IoU: More Accurate Metric considering Bounding Box
        Shape and Scale", 2023, arXiv:2312.17663, with the weights where the authors'
        code has them.
    """
    (w1, h1), (w2, h2) = _sides(a), _sides(b)
    longer = jnp.maximum(w2, h2)
    wide, high = (power(fraction(side, longer), scale) for side in (w2, h2))
    wide, high = (2 * fraction(side, wide + high) for side in (wide, high))
    (dx, dy), (width, height) = _centre_offset(a, b), _hull(a, b)
    square = width * width + height * height
    distance = high * fraction(dx * dx, square) + wide * fraction(dy * dy, square)
    shape = _saturating(high * _difference(w1, w2))
    shape += _saturating(wide * _difference(h1, h2))
    return _iou_and_union(a, b)[0], distance, shape / 2


def _corner_distance(a: Planes, b: Planes) -> Array:
    """Mean distance of the four edges over the target's sides, at most 50."""
    total = jnp.zeros((), a[0].dtype)
    for side, low, high in zip(_sides(b), (0, 1), (2, 3), strict=True):
        for k in (low, high):
            # e^-50 and e^-50² are nothing: what is farther cannot overflow either.
            total += divide(jnp.minimum(jnp.abs(a[k] - b[k]), 200 * side), side)
    return total / 4


@measure(minimum=-1.0, symmetric=False)
def piou(a: Planes, b: Planes) -> Planes:
    """Powerful-IoU: IoU minus a penalty that depends on the size of the target alone.

    PIoU = IoU - (1 - exp(-P²)), P = (|dx₁| + |dx₂|) / (4 w₂) + (|dy₁| + |dy₂|) / (4 h₂)
    with dx₁ … dy₂ the distances of like edges.

    Args:
        boxes1: `(*batch, 4)`, xyxy, the predictions.
        boxes2: `(*batch, 4)`, xyxy, the targets; leading axes broadcast.

    Returns:
        `(*batch)`, in [-1, 1]: 1 for identical boxes. Not symmetric; free of scale and
        position.

    At the edge:
        Disjoint boxes keep a gradient; it fades as exp(-P²), to nothing about ten
        targets away. A target without width counts no distance in x.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.piou([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.109125

    Reference:
        C. Liu, K. Wang, Q. Li, F. Zhao, K. Zhao, H. Ma, "Powerful-IoU: More
        straightforward and faster bounding box regression loss with a nonmonotonic
        focusing mechanism", Neural Networks 170, 2024. The PIoU of rotated boxes
        ("Pixels-IoU") is something else.
    """
    distance = _corner_distance(a, b)
    return _iou_and_union(a, b)[0], 1 - jnp.exp(-distance * distance)


def _piou_given(*, attention: float) -> dict[str, Any]:
    _checks.number("piou_v2", "attention", attention, above=0, default="1.3")
    return {}


@measure(minimum=-1.578125, symmetric=False, given=_piou_given)
def piou_v2(a: Planes, b: Planes, *, attention: float = 1.3) -> Array:
    """Powerful-IoU v2: PIoU, its loss weighted most for boxes of middling quality.

    1 - 3 x exp(-x²) (1 - PIoU), x = λ exp(-P) with P the distance of `piou`.

    Args:
        attention: λ, which moves the quality that gets the greatest weight.

    Returns:
        A measure in [-1.58, 1]: 1 for identical boxes. Not symmetric; free of scale and
        position.

    At the edge:
        It returns to 1 for boxes far away, whose loss has no weight: a measure for
        losses, not for matching or suppression.

    Raises:
        ValueError: on an attention that is not positive.
        TypeError: on an array as parameter.

    Example:
        >>> import jaxiou
        >>> measure = jaxiou.piou_v2(attention=1.3)
        >>> print(measure([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        -0.0454185

    Reference:
        C. Liu, K. Wang, Q. Li, F. Zhao, K. Zhao, H. Ma, "Powerful-IoU", Neural Networks
        170, 2024. As in the authors' code, the weight takes part in the gradient.
    """
    distance = _corner_distance(a, b)
    x = attention * jnp.exp(-distance)
    loss = (1 - _iou_and_union(a, b)[0]) + (1 - jnp.exp(-distance * distance))
    return 1 - 3 * x * jnp.exp(-x * x) * loss


@measure(minimum=-1.71875)
def wiou(a: Planes, b: Planes) -> Array:
    """Wise-IoU v1: IoU, its loss amplified for boxes whose centres are apart.

    WIoU = 1 - exp(ρ² / c²) (1 - IoU) with ρ the distance of the centres and c the
    diagonal of the smallest box around both, which is constant in the gradient.

    Args:
        boxes1: `(*batch, 4)`, xyxy, any unit.
        boxes2: `(*batch, 4)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [1 - e, 1]: 1 for identical boxes. Symmetric, free of scale and
        position.

    At the edge:
        Disjoint boxes keep a gradient. Identical points give 0.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.wiou([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.15044028

    Reference:
        Z. Tong, Y. Chen, Z. Xu, R. Yu, "Wise-IoU: Bounding Box Regression Loss with
        Dynamic Focusing Mechanism", 2023, arXiv:2301.10051. v2 and v3 depend on the
        mean loss of the training so far: `wiou_loss`.
    """
    (dx, dy), (width, height) = _centre_offset(a, b), _hull(a, b)
    square = jax.lax.stop_gradient(width * width + height * height)
    away = jnp.exp(fraction(dx * dx + dy * dy, square))
    return 1 - away * (1 - _iou_and_union(a, b)[0])
