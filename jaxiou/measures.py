"""One short function per published measure of two axis-aligned boxes.

Each is a formula on coordinate planes `(x1, y1, x2, y2)` of one pair, written as it is
printed, and becomes a `Measure` by the decorator: call it for aligned boxes, pass it as
`measure=` everywhere else. An inverted box (x2 < x1) is empty: its area is 0. Ratios
with a zero denominator are 0, so two empty boxes have IoU 0.
"""

__all__ = [
    "ciou",
    "diou",
    "eiou",
    "gated_ciou",
    "giou",
    "iof",
    "iou",
    "measure",
]

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import _checks
from ._measure import Planes, measure
from ._numerics import angle, divide, fraction, hull, nonnegative, overlap


def _sides(box: Planes) -> tuple[Array, Array]:
    x1, y1, x2, y2 = box
    return nonnegative(x2 - x1), nonnegative(y2 - y1)


def _area(box: Planes) -> Array:
    width, height = _sides(box)
    return width * height


def _intersection(a: Planes, b: Planes) -> Array:
    return overlap(a[0], a[2], b[0], b[2]) * overlap(a[1], a[3], b[1], b[3])


def _iou_and_union(a: Planes, b: Planes) -> tuple[Array, Array]:
    intersection = _intersection(a, b)
    union = _area(a) + _area(b) - intersection
    return fraction(intersection, union), union


def _hull(a: Planes, b: Planes) -> tuple[Array, Array]:
    return hull(a[0], a[2], b[0], b[2]), hull(a[1], a[3], b[1], b[3])


def _centre_offset(a: Planes, b: Planes) -> tuple[Array, Array]:
    # Differences of like corners first: exact where the boxes are near each other.
    return ((a[0] - b[0]) + (a[2] - b[2])) / 2, ((a[1] - b[1]) + (a[3] - b[3])) / 2


def _centre_distance(a: Planes, b: Planes) -> Array:
    """Squared centre distance over the squared diagonal of the hull."""
    width, height = _hull(a, b)
    dx, dy = _centre_offset(a, b)
    return fraction(dx * dx + dy * dy, width * width + height * height)


def _aspect(a: Planes, b: Planes, iou: Array) -> Array:
    """The term α v of CIoU, α constant in the gradient."""
    # In this order v does not exceed 1 by a rounding.
    turn = (angle(*_sides(b)) - angle(*_sides(a))) * (2 / math.pi)
    v = turn * turn
    return jax.lax.stop_gradient(divide(v, 1 - iou + v)) * v


@measure(minimum=0.0)
def iou(a: Planes, b: Planes) -> Planes:
    """Intersection over union, the Jaccard index of two boxes.

    IoU = I / U with I = area(A ∩ B) and U = area(A) + area(B) - I.

    Args:
        boxes1: `(*batch, 4)`, xyxy, any unit.
        boxes2: `(*batch, 4)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1]: 1 for identical boxes, 0 for disjoint ones. Symmetric,
        free of scale and position.

    At the edge:
        Touching boxes give 0. An empty box gives 0 with every box, itself included.
        Disjoint boxes have gradient 0. A zero-width box inside the other one keeps its
        one-sided gradient; at ties between edges the two sides get half each.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.iou([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.21428572

    Reference:
        P. Jaccard, "The distribution of the flora in the alpine zone", 1912. Other
        libraries return NaN for two empty boxes (torchvision) or add an eps to the
        denominator, which bends small boxes.
    """
    # A tuple of terms, as in the measures below that subtract penalties.
    return _iou_and_union(a, b)[:1]


@measure(minimum=0.0, symmetric=False)
def iof(a: Planes, b: Planes) -> Array:
    """Intersection over foreground: the part of the first box covered by the second.

    IoF = area(A ∩ B) / area(A).

    Args:
        boxes1: `(*batch, 4)`, xyxy, any unit; their areas divide.
        boxes2: `(*batch, 4)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1]: 1 where the first box lies inside the second. Not
        symmetric.

    At the edge:
        0 where the first box is empty, or the two are disjoint or touch.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.iof([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.375

    Reference:
        The `iof` mode of mmdetection's `bbox_overlaps`. The "ioa" of detectron2 and
        ultralytics divides by the area of the *second* box: that is
        `iof(boxes2, boxes1)` here. With crowd regions as the second box it is the
        crowd overlap of the COCO evaluation.
    """
    return fraction(_intersection(a, b), _area(a))


@measure(minimum=-1.0)
def giou(a: Planes, b: Planes) -> Planes:
    """Generalised IoU: IoU minus the empty part of the hull.

    GIoU = IoU - (C - U) / C with C the area of the smallest box around both.

    Args:
        boxes1: `(*batch, 4)`, xyxy, any unit.
        boxes2: `(*batch, 4)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [-1, 1]: 1 for identical boxes, towards -1 as they move apart, so
        the loss goes up to 2. Symmetric, free of scale and position.

    At the edge:
        Disjoint boxes keep a gradient. Two empty boxes give 0 where the hull is empty
        too and -1 where it is not.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.giou([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.08928572

    Reference:
        H. Rezatofighi, N. Tsoi, J. Gwak, A. Sadeghian, I. Reid, S. Savarese,
        "Generalized Intersection over Union", 2019, arXiv:1902.09630. Copies exist
        that subtract the intersection in place of the union (-1 instead of -1/3 for
        unit squares one side apart).
    """
    iou, union = _iou_and_union(a, b)
    width, height = _hull(a, b)
    enclosing = width * height
    return iou, fraction(enclosing - union, enclosing)


@measure(minimum=-1.0)
def diou(a: Planes, b: Planes) -> Planes:
    """Distance IoU: IoU minus the normalised distance of the centres.

    DIoU = IoU - ρ² / c² with ρ the distance of the centres and c the diagonal of the
    smallest box around both.

    Args:
        boxes1: `(*batch, 4)`, xyxy, any unit.
        boxes2: `(*batch, 4)`, leading axes broadcast.

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
        >>> print(jaxiou.diou([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.13616072

    Reference:
        Z. Zheng, P. Wang, W. Liu, J. Li, R. Ye, D. Ren, "Distance-IoU Loss: Faster and
        Better Learning for Bounding Box Regression", 2020, arXiv:1911.08287.
    """
    return _iou_and_union(a, b)[0], _centre_distance(a, b)


@measure(minimum=-1.5)
def ciou(a: Planes, b: Planes) -> Planes:
    """Complete IoU: DIoU minus a term for the aspect ratio.

    CIoU = DIoU - α v, v = 4/π² (arctan(w₂/h₂) - arctan(w₁/h₁))²,
    α = v / (1 - IoU + v).

    Args:
        boxes1: `(*batch, 4)`, xyxy, any unit.
        boxes2: `(*batch, 4)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [-1.5, 1]: 1 for identical boxes, equal to DIoU for equal aspect
        ratios (all squares, for example). Symmetric, free of scale and position.

    At the edge:
        The angle of a point is 0. α is constant in the gradient, as in the authors'
        code, so finite differences agree only with α frozen.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.ciou([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.13403384

    Reference:
        Z. Zheng, P. Wang, W. Liu, J. Li, R. Ye, D. Ren, "Distance-IoU Loss: Faster and
        Better Learning for Bounding Box Regression", 2020, arXiv:1911.08287. The
        printed ∂v/∂w and ∂v/∂h have the wrong sign; here they are derived.
        mmdetection sets α to 0 where IoU <= 0.5: `gated_ciou`.
    """
    iou, _ = _iou_and_union(a, b)
    return iou, _centre_distance(a, b), _aspect(a, b, iou)


def _gate_given(*, gate: float) -> dict[str, Any]:
    _checks.number("gated_ciou", "gate", gate, least=0, most=1, default="0.5")
    return {}


@measure(minimum=-1.5, given=_gate_given)
def gated_ciou(a: Planes, b: Planes, *, gate: float = 0.5) -> Planes:
    """CIoU whose aspect term counts only for boxes that overlap enough.

    DIoU - α v as `ciou`, with α = 0 where IoU <= gate.

    Args:
        gate: the IoU above which the aspect ratio counts, in [0, 1].

    Returns:
        A measure in [-1.5, 1]: 1 for identical boxes, `diou` where the IoU is not above
        the gate. Symmetric, free of scale and position.

    At the edge:
        It jumps where the IoU equals the gate; the gradient does not see the jump.

    Raises:
        ValueError: on a gate outside of [0, 1].
        TypeError: on an array as parameter.

    Example:
        >>> import jaxiou
        >>> measure = jaxiou.gated_ciou(gate=0.2)
        >>> print(measure([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.13403384

    Reference:
        Z. Zheng et al., "Enhancing Geometric Factors in Model Learning and Inference
        for Object Detection and Instance Segmentation", 2020, arXiv:2005.03572, in the
        form of the authors' code; the `ciou_loss` of mmdetection.
    """
    iou, _ = _iou_and_union(a, b)
    aspect = jnp.where(iou > gate, _aspect(a, b, iou), 0)
    return iou, _centre_distance(a, b), aspect


@measure(minimum=-2.25)
def eiou(a: Planes, b: Planes) -> Planes:
    """Efficient IoU: DIoU minus the differences of the widths and of the heights.

    EIoU = IoU - ρ² / c² - (w₁ - w₂)² / W² - (h₁ - h₂)² / H² with ρ the distance of the
    centres, W and H the sides of the smallest box around both and c its diagonal.

    Args:
        boxes1: `(*batch, 4)`, xyxy, any unit.
        boxes2: `(*batch, 4)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [-2.25, 1]: 1 for identical boxes. Symmetric, free of scale and
        position.

    At the edge:
        Disjoint boxes keep a gradient. Identical points give 0.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.eiou([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.011160716

    Reference:
        Y.-F. Zhang, W. Ren, Z. Zhang, Z. Jia, L. Wang, T. Tan, "Focal and Efficient IOU
        Loss for Accurate Bounding Box Regression", 2021, arXiv:2101.08158. The
        `eiou_loss` of mmdetection is another loss, `smooth_iou` here; the "EIoU" of the
        Wise-IoU code has centre offsets in place of the differences of the sides.
    """
    (w1, h1), (w2, h2), (width, height) = _sides(a), _sides(b), _hull(a, b)
    wide = fraction(jnp.abs(w1 - w2), width)
    high = fraction(jnp.abs(h1 - h2), height)
    return _iou_and_union(a, b)[0], _centre_distance(a, b), wide * wide, high * high
