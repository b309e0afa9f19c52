"""Boxes read as Gaussians: smooth measures and distances in closed form.

A box `(cx, cy, w, h, angle)` becomes the Gaussian with its centre as the mean and
R diag(w²/4, h²/4) Rᵀ as the covariance. What follows is smooth, costs less than an
exact overlap, and reaches boxes that do not overlap. It also forgets something: a
square box has no angle, for its Gaussian is round.

Measures are here, distances in `distances.py`.
"""

__all__ = [
    "kfiou",
    "kfiou_raw",
    "mgiou",
    "nwd",
    "probiou",
    "rotated_nwd",
    "to_gaussian",
]

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks, _turned
from ._measure import Planes, measure
from ._numerics import divide, nonnegative, root, saturate, smallest
from .boxes import pack, unpack


class Pair(NamedTuple):
    """Two Gaussians in units of their longest side, without their orientation.

    Distance of the means along the sides of the one and of the other; half sides, which
    are the standard deviations; the squared sine of the angle between the two.
    """

    x1: Array
    y1: Array
    x2: Array
    y2: Array
    a1: Array
    b1: Array
    a2: Array
    b2: Array
    sin2: Array

    @property
    def turn(self) -> Array:
        """sin² (a₁² - b₁²) (a₂² - b₂²), all there is about the angle."""
        first = (self.a1 - self.b1) * (self.a1 + self.b1)
        second = (self.a2 - self.b2) * (self.a2 + self.b2)
        return self.sin2 * first * second


def pair(a: Planes, b: Planes, *, flattest: float = 0.0) -> Pair:
    """The pair in its own unit, so that products of four sides stay in range.

    The unit is constant in the derivative: what is computed here does not depend on it.
    Sides are at least `flattest` units, and derivatives go through.
    """
    pose = _turned.pose(*_turned.bounded(a, b))
    unit = jnp.maximum(jnp.maximum(pose.a, pose.b), jnp.maximum(pose.w, pose.h))
    # Where both are smaller they are points, all alike to what divides by their sides.
    least = smallest(unit.dtype) ** 0.5
    points = (unit < least) & (flattest > 0)
    unit = jnp.maximum(jax.lax.stop_gradient(unit), least)
    far = 1 / float(jnp.finfo(unit.dtype).eps)

    def side(length: Array) -> Array:
        length = length / unit
        length = jnp.where(points, 1, length)
        return length + jax.lax.stop_gradient(jnp.maximum(flattest - length, 0))

    return Pair(
        x1=saturate((pose.cos * pose.x + pose.sin * pose.y) / unit, far),
        y1=saturate((pose.cos * pose.y - pose.sin * pose.x) / unit, far),
        x2=saturate(pose.x / unit, far),
        y2=saturate(pose.y / unit, far),
        a1=side(pose.a),
        b1=side(pose.b),
        a2=side(pose.w),
        b2=side(pose.h),
        sin2=pose.sin * pose.sin,
    )


def flattened(a: Planes, b: Planes) -> Pair:
    """The pair with sides long enough for finite divergences: 1e-6 units in float32."""
    return pair(a, b, flattest=8 * float(jnp.finfo(jnp.result_type(*a, *b)).eps))


def to_gaussian(
    boxes: _checks.Boxes,
) -> tuple[Float[Array, "*batch 2"], Float[Array, "*batch 2 2"]]:
    """Mean and covariance of the Gaussian of a box that turns.

    μ = (cx, cy), Σ = R diag(w²/4, h²/4) Rᵀ: the sides are two standard deviations.

    Args:
        boxes: `(*batch, 5)`, (cx, cy, w, h, angle), radians.

    Returns:
        `(*batch, 2)` means and `(*batch, 2, 2)` covariances, in the arithmetic dtype:
        squares of sides overflow half precision.

    At the edge:
        A negative side counts as 0, which gives a covariance of less than full rank.

    Raises:
        ValueError: on shapes that are not boxes.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> mean, covariance = jaxiou.to_gaussian([3.0, 2.0, 6.0, 2.0, 0.0])
        >>> print(mean, covariance.ravel())
        [3. 2.] [9. 0. 0. 1.]

    Reference:
        X. Yang et al., "Rethinking Rotated Object Detection with Gaussian Wasserstein
        Distance Loss", 2021, arXiv:2101.11952. ProbIoU divides by 12 in place of 4, the
        variance of the uniform distribution on the box.
    """
    array = _checks.as_boxes("to_gaussian", "boxes", boxes, coordinates=5)
    cx, cy, w, h, angle = unpack(array)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = ((nonnegative(side) / 2) ** 2 for side in (w, h))
    xx = first * cos * cos + second * sin * sin
    yy = first * sin * sin + second * cos * cos
    xy = (first - second) * sin * cos
    covariance = pack((xx, xy, xy, yy), xx.dtype).reshape(*xx.shape, 2, 2)
    return pack((cx, cy), xx.dtype), covariance


def wasserstein(a: Planes, b: Planes) -> Array:
    """2-Wasserstein distance in the boxes' unit."""
    x, y, _, sin, a1, b1, a2, b2 = _turned.pose(*_turned.bounded(a, b))
    # A unit alone, which cancels: its derivatives would too.
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(a1, b1), jnp.maximum(a2, b2)))
    p1, q1, p2, q2 = (divide(side, unit) for side in (a1, b1, a2, b2))
    # tr(Σ₁ + Σ₂ - 2 (Σ₁^½ Σ₂ Σ₁^½)^½) without the difference of its large terms.
    product = p1 * p2 + q1 * q2
    turn = (sin * (p1 - q1) * (p1 + q1)) * (sin * (p2 - q2) * (p2 + q2))
    fidelity = root(nonnegative(product * product - turn))
    # Of sides this different the angle is nothing beside their difference.
    bends = product > float(jnp.finfo(product.dtype).eps) ** 2
    turn = jnp.where(bends, turn, 0)
    bent = unit * turn * 2 / jnp.where(bends, product + fidelity, 1)
    squares = (a1 - a2) ** 2 + (b1 - b2) ** 2 + bent * unit
    return root(nonnegative(x * x + y * y + squares))


@measure(minimum=0.0, scale_free=False)
def nwd(a: Planes, b: Planes, *, constant: float) -> Array:
    """Normalised Gaussian Wasserstein distance of axis-aligned boxes, a similarity.

    NWD = exp(-W₂ / C) with W₂² = |c₁ - c₂|² + ((w₁ - w₂)² + (h₁ - h₂)²) / 4.

    Args:
        constant: C, in the unit of the boxes: about their mean size (12.8 pixels for
            the tiny objects of AI-TOD).

    Returns:
        A measure of xyxy boxes `(*batch, 4)`, in [0, 1]: 1 for identical boxes, e⁻¹ at
        distance C. Symmetric; not free of scale.

    At the edge:
        Disjoint boxes keep a gradient until the exponential underflows, at a distance
        of 87 C in float32. Identical boxes have gradient 0, others near them do not.

    Raises:
        TypeError: when `constant` is an array.

    Example:
        >>> import jaxiou
        >>> a, b = [0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]
        >>> print(f"{jaxiou.nwd(12.8)(a, b):.5f}")
        0.87344

    Reference:
        J. Wang, C. Xu, W. Yang, L. Yu, "A Normalized Gaussian Wasserstein Distance for
        Tiny Object Detection", 2021, arXiv:2110.13389. Its code adds 1e-6 to sides and
        distances.
    """
    x, y = (((a[k] - b[k]) + (a[k + 2] - b[k + 2])) / 2 for k in (0, 1))
    w, h = (
        (nonnegative(a[k + 2] - a[k]) - nonnegative(b[k + 2] - b[k])) / 2
        for k in (0, 1)
    )
    return jnp.exp(-root(x * x + y * y + w * w + h * h) / constant)


@measure(minimum=0.0, coordinates=5, scale_free=False)
def rotated_nwd(a: Planes, b: Planes, *, constant: float) -> Array:
    """Normalised Gaussian Wasserstein distance of boxes that turn, a similarity.

    NWD = exp(-W₂ / C) with W₂ as in `gwd_distance`; `nwd` where the angles are 0.

    Args:
        constant: C, in the unit of the boxes: about their mean size.

    Returns:
        A measure of `(*batch, 5)` boxes, in [0, 1]: 1 for identical boxes, e⁻¹ at
        distance C. Symmetric; not free of scale.

    At the edge:
        As for `nwd`.

    Raises:
        TypeError: when `constant` is an array.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.rotated_nwd(12.8)(a, b):.5f}")
        0.85465

    Reference:
        J. Wang, C. Xu, W. Yang, L. Yu, 2021, arXiv:2110.13389, with the distance of
        arXiv:2101.11952.
    """
    return jnp.exp(-wasserstein(a, b) / constant)


def _sum_of_covariances(both: Pair) -> Array:
    """Determinant of Σ₁ + Σ₂."""
    along = (both.a1**2 + both.a2**2) * (both.b1**2 + both.b2**2)
    return along + both.turn


def bhattacharyya(both: Pair, *, variance: float) -> Array:
    """Bhattacharyya distance with variances of half a side times `variance`."""
    x1, y1, x2, y2, a1, b1, a2, b2, _ = both
    first = (b1 * x1) ** 2 + (a1 * y1) ** 2
    second = (b2 * x2) ** 2 + (a2 * y2) ** 2
    determinant = _sum_of_covariances(both)
    place = divide(first + second, determinant) / (4 * variance)
    # |Σ₁ + Σ₂| / (4 √|Σ₁| √|Σ₂|) - 1, free of cancellation for equal shapes.
    a, b = a1 * a2, b1 * b2
    wide, high = (a1 - a2) ** 2, (b1 - b2) ** 2
    excess = nonnegative(wide * high + 2 * b * wide + 2 * a * high + both.turn)
    return place + jnp.log1p(divide(excess / a, 4 * b)) / 2


@measure(minimum=0.0, coordinates=5)
def probiou(a: Planes, b: Planes) -> Array:
    """ProbIoU: one minus the Hellinger distance of two boxes' Gaussians.

    P = 1 - √(1 - e⁻ᴮ) with B the Bhattacharyya distance for variances w²/12 and h²/12,
    those of uniform distributions.

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), radians.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1]: 1 for the same rectangle. Symmetric, free of scale.

    At the edge:
        Far boxes keep a gradient until e⁻ᴮ underflows, B = 87 in float32; farther ones
        learn from `similarity(bhattacharyya_distance)`. Identical boxes have gradient
        0, others near them do not. Two squares: their angles do not matter.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.probiou(a, b):.5f}")
        0.47254

    Reference:
        J. M. Llerena, L. F. Zeni, L. N. Kristen, C. Jung, "Gaussian Bounding Boxes and
        Probabilistic Intersection-over-Union for Object Detection", 2021,
        arXiv:2106.06072. ultralytics clamps B to [1e-7, 100] and adds 1e-7 under the
        root: identical boxes have 0.99955, and far ones get no gradient.
    """
    distance = bhattacharyya(flattened(a, b), variance=1 / 3)
    apart = root(-jnp.expm1(-distance))
    # 1 - √(1 - c) = c / (1 + √(1 - c)) keeps the digits of small values.
    return jnp.exp(-distance) / (1 + apart)


def _kalman_overlap(a: Planes, b: Planes) -> Array:
    """Area of the product Gaussian over that of the union: at most 1/3."""
    both = pair(a, b)
    area1, area2 = both.a1 * both.b1, both.a2 * both.b2
    overlap = divide(area1 * area2, root(_sum_of_covariances(both)))
    return divide(overlap, area1 + area2 - overlap)


@measure(minimum=0.0, coordinates=5)
def kfiou(a: Planes, b: Planes) -> Array:
    """KFIoU: overlap of two boxes' Gaussians as a Kalman filter fuses them, times 3.

    3 V / (V₁ + V₂ - V) with V the area of the box of Σ = Σ₁ - Σ₁ (Σ₁ + Σ₂)⁻¹ Σ₁: it
    compares sides and angles, not centres.

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), radians; centres do not matter.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1]: 1 for equal sides and angles. Symmetric, free of scale.

    At the edge:
        An empty box gives 0 and keeps its one-sided gradient. Use it together with a
        loss of the centres; alone it matches boxes wherever they are.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.kfiou(a, b):.5f}, raw {jaxiou.kfiou_raw(a, b):.5f}")
        0.79863, raw 0.26621

    Reference:
        X. Yang, Y. Zhou, G. Zhang, J. Yang, W. Wang, J. Yan, X. Zhang, Q. Tian, "The
        KFIoU Loss for Rotated Object Detection", 2022, arXiv:2201.12558: there without
        the 3, `kfiou_raw` here, so identical boxes have 1/3 and a loss of 2/3.
    """
    return jnp.minimum(3 * _kalman_overlap(a, b), 1)


@measure(minimum=0.0, maximum=1 / 3, coordinates=5)
def kfiou_raw(a: Planes, b: Planes) -> Array:
    """KFIoU as published, in [0, 1/3]; `kfiou` is three times it.

    V / (V₁ + V₂ - V) with V the area of the box of Σ = Σ₁ - Σ₁ (Σ₁ + Σ₂)⁻¹ Σ₁.

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), radians; centres do not matter.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [0, 1/3]: 1/3 for equal sides and angles. Symmetric, free of
        scale.

    At the edge:
        As for `kfiou`.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a = [3.0, 2.0, 6.0, 2.0, 0.5]
        >>> print(f"{jaxiou.kfiou_raw(a, a):.5f}")
        0.33333

    Reference:
        X. Yang et al., 2022, arXiv:2201.12558.
    """
    return jnp.minimum(_kalman_overlap(a, b), 1 / 3)


@measure(minimum=-1.0, coordinates=5)
def mgiou(a: Planes, b: Planes) -> Array:
    """Marginalised GIoU: the mean GIoU of the shadows on the four sides' directions.

    ¼ Σ over the normals n of both boxes of (overlap of the projections on n, negative
    for a gap) / (length of their hull).

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), any unit, radians.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, in [-1, 1]: 1 for the same rectangle, towards -1 as they move apart.
        Symmetric, free of scale, position and orientation.

    At the edge:
        Disjoint boxes keep a gradient, and squares their angle. A direction in which
        neither box has an extent counts 0.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.mgiou(a, b):.5f}")
        0.57308

    Reference:
        D. T. Le, T. Pham, J. Cai, H. Rezatofighi, "Marginalized Generalized IoU
        (MGIoU)", 2025, arXiv:2504.16443, whose loss is (1 - MGIoU) / 2.
    """
    total = jnp.zeros(())
    pose = _turned.pose(*_turned.bounded(a, b))
    for d, reach_a, reach_b in _turned.projections(pose):
        low, high = d - reach_a, d + reach_a
        overlap = jnp.minimum(high, reach_b) - jnp.maximum(low, -reach_b)
        hull = jnp.maximum(high, reach_b) - jnp.minimum(low, -reach_b)
        total = total + divide(overlap, hull)
    return total / 4
