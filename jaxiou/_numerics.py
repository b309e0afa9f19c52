"""Arithmetic with a defined value and gradient at the degenerate point.

A formula built from these needs no `eps`: denominators are guarded by selection, and
the derivatives are written so that no square of a denominator ever appears (JAX's own
rule for a / b computes b**2, which is 0 at 1e-20 and infinite at 1e20 in float32).
All functions are `custom_jvp`: forward mode, reverse mode and higher orders work.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._checks import is_sharded

Plane: TypeAlias = Float[Array, "..."]
Operands: TypeAlias = tuple[Plane, ...]


def smallest(dtype: jnp.dtype) -> float:
    """Below this a denominator counts as zero: 1e-31 in float32.

    Above it, a product that went into the denominator still has all its digits, and
    the reciprocal times a cotangent of ordinary size does not overflow.
    """
    info = jnp.finfo(dtype)
    return float(info.tiny) / float(info.eps)


def largest(dtype: jnp.dtype) -> float:
    """Coordinates saturate here: 2e18 in float32, so that squared sides stay finite."""
    return float(jnp.finfo(dtype).max) ** 0.5 / 8


def saturate(x: Plane, limit: float) -> Plane:
    """Clips to ±limit. NaN passes through."""
    return jnp.clip(x, -limit, limit)


def nonnegative(x: Plane) -> Plane:
    """max(x, 0) with derivative 1 at zero, so that an empty box can grow.

    `jnp.maximum(x, 0)` would hand back half of the one-sided derivative.
    """
    return jnp.where(x < 0, 0, x)


@jax.custom_jvp
def larger(x: Plane, y: Plane) -> Plane:
    """Maximum; one half of the derivative each at a tie; NaN where `y` is NaN.

    A selection is one instruction of a CPU, `jnp.maximum` five: there it costs a matrix
    half of its time. NaN of `x` alone gets lost, so a formula must meet it elsewhere,
    as every formula does that divides by an area.
    """
    if is_sharded(x) or is_sharded(y):
        # The two sides of a selection must be sharded alike, of a maximum need not.
        return jnp.maximum(x, y)
    return jnp.where(x > y, x, y)


@larger.defjvp
def _larger_jvp(primals: Operands, tangents: Operands) -> tuple[Plane, Plane]:
    (x, y), (dx, dy) = primals, tangents
    share = _share(x, y)
    return larger(x, y), share * dx + (1 - share) * dy


@jax.custom_jvp
def smaller(x: Plane, y: Plane) -> Plane:
    """Minimum, otherwise like `larger`."""
    if is_sharded(x) or is_sharded(y):
        return jnp.minimum(x, y)
    return jnp.where(x < y, x, y)


@smaller.defjvp
def _smaller_jvp(primals: Operands, tangents: Operands) -> tuple[Plane, Plane]:
    (x, y), (dx, dy) = primals, tangents
    share = _share(y, x)
    return smaller(x, y), share * dx + (1 - share) * dy


def clamp(x: Plane, low: Plane | float, high: Plane | float) -> Plane:
    """x within [low, high], two instructions like `larger`; NaN of `x` goes through."""
    low, high = (jnp.asarray(bound, x.dtype) for bound in (low, high))
    return smaller(high, larger(low, x))


@jax.custom_jvp
def divide(numerator: Plane, denominator: Plane) -> Plane:
    """numerator / denominator, and 0 with zero gradient where the latter is zero."""
    empty = denominator <= smallest(denominator.dtype)
    return jnp.where(empty, 0, numerator / jnp.where(empty, 1, denominator))


@divide.defjvp
def _divide_jvp(primals: Operands, tangents: Operands) -> tuple[Plane, Plane]:
    return _quotient_rule(divide, primals, tangents)


@jax.custom_jvp
def fraction(part: Plane, whole: Plane) -> Plane:
    """`divide` for 0 <= part <= whole: the value never leaves [0, 1].

    Mathematically the clip does nothing; numerically an approximate division or a
    fused multiply-add can exceed the range by an ulp. The derivative ignores it. NaN
    of either goes through.
    """
    # What follows the division reads it once: read twice, XLA would write it out first.
    least = smallest(whole.dtype)
    whole = jnp.where(whole < least, least, whole)
    return jnp.minimum(nonnegative(part) / whole, 1)


@fraction.defjvp
def _fraction_jvp(primals: Operands, tangents: Operands) -> tuple[Plane, Plane]:
    return _quotient_rule(fraction, primals, tangents)


def _quotient_rule(
    function: Callable[[Plane, Plane], Plane], primals: Operands, tangents: Operands
) -> tuple[Plane, Plane]:
    """d(n/d) = (dn - (n/d) dd) / d, which never squares d."""
    numerator, denominator = primals
    quotient = function(numerator, denominator)
    change = tangents[0] - quotient * tangents[1]
    # `divide` again: guarded alike, and differentiable again.
    return quotient, divide(change, denominator)


def power(x: Plane, exponent: float) -> Plane:
    """x ** exponent for x >= 0, with a finite derivative at zero.

    Exponents below 1 have a vertical tangent there: below 1e-6 a parabola through the
    origin continues the power with its slope.
    """
    if float(exponent).is_integer():
        return x ** int(exponent)
    floor = 1e-6 if exponent < 1 else 0.0
    below = x <= floor
    result = jnp.where(below, 1, x) ** exponent
    if not floor:
        return jnp.where(below, 0, result)
    t = x / floor
    parabola = floor**exponent * t * ((2 - exponent) + (exponent - 1) * t)
    return jnp.where(below, parabola, result)


@jax.custom_jvp
def root(x: Plane) -> Plane:
    """√x for x >= 0, with gradient 0 at 0."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: tuple[Plane], tangents: tuple[Plane]) -> tuple[Plane, Plane]:
    value = root(primals[0])
    return value, divide(tangents[0] / 2, value)


@jax.custom_jvp
def overlap(a1: Plane, a2: Plane, b1: Plane, b2: Plane) -> Plane:
    """Length of the intersection of the intervals [a1, a2] and [b1, b2].

    Inverted intervals are empty. Derivatives: one half at ties between edges of the
    two intervals (touching included); the full one-sided derivative for an interval of
    zero length inside the other one, so that it can grow.
    """
    return nonnegative(smaller(a2, b2) - larger(a1, b1))


@overlap.defjvp
def _overlap_jvp(primals: Operands, tangents: Operands) -> tuple[Plane, Plane]:
    a1, a2, b1, b2 = primals
    da1, da2, db1, db2 = tangents
    length = smaller(a2, b2) - larger(a1, b1)
    degenerate = (a1 == a2) | (b1 == b2)
    at_zero = jnp.where(degenerate, 1.0, 0.5)
    open_ = jnp.where(length > 0, 1.0, jnp.where(length == 0, at_zero, 0.0))
    end = _share(b2, a2)
    start = _share(a1, b1)
    change = end * da2 + (1 - end) * db2 - start * da1 - (1 - start) * db1
    return overlap(a1, a2, b1, b2), open_.astype(length.dtype) * change


def _share(x: Plane, y: Plane) -> Plane:
    """1 where x is the larger, 0 where y is, one half at a tie."""
    share = jnp.where(x > y, 1.0, jnp.where(x == y, 0.5, 0.0))
    return share.astype(jnp.result_type(x, y))


def hull(a1: Plane, a2: Plane, b1: Plane, b2: Plane) -> Plane:
    """Length of the smallest interval that holds all four end points."""
    # Ordering by selection leaves the one-sided derivative of zero-length intervals.
    a_low, a_high = jnp.where(a2 < a1, a2, a1), jnp.where(a2 < a1, a1, a2)
    b_low, b_high = jnp.where(b2 < b1, b2, b1), jnp.where(b2 < b1, b1, b2)
    return larger(a_high, b_high) - smaller(a_low, b_low)


def _right_angle(dtype: jnp.dtype) -> float:
    """The largest number below π/2: rounded upwards, it takes CIoU out of its range."""
    eps = float(jnp.finfo(dtype).eps)
    return math.floor(math.pi / 2 / eps) * eps


@jax.custom_jvp
def angle(y: Plane, x: Plane) -> Plane:
    """arctan(y / x) in [0, π/2] for y, x >= 0; at the origin 0 with zero gradient."""
    # The difference -0.0 - 0.0 is -0.0, and the angle of (-0.0, 0.0) would be π.
    y, x = jnp.abs(y), jnp.abs(x)
    turned = jnp.arctan2(y, x) if y.dtype == jnp.float64 else _arctangent(y, x)
    return jnp.minimum(turned, _right_angle(turned.dtype))


def _arctangent(y: Plane, x: Plane) -> Plane:
    """`jnp.arctan2` of float32, neither negative, to 3 ulp; NaN of `y` alone gets lost.

    On a CPU XLA calls the C library for each number, which takes six times as long, and
    kernels have none to call. The polynomial is that of Cephes (S. Moshier, 1992).
    """
    low, high = smaller(y, x), larger(y, x)
    # From tan(π/8) on it is π/4 and the angle of (low - high, low + high).
    steep = low > math.tan(math.pi / 8) * high
    below = jnp.where(steep, low + high, high)
    t = jnp.where(steep, low - high, low) / jnp.where(below == 0, 1, below)
    s = t * t
    series = (8.05374449538e-2 * s - 1.38776856032e-1) * s + 1.99777106478e-1
    turned = t + t * s * (series * s - 3.33329491539e-1)
    turned = jnp.where(steep, math.pi / 4 + turned, turned)
    return jnp.where(y > x, math.pi / 2 - turned, turned)


@angle.defjvp
def _angle_jvp(primals: Operands, tangents: Operands) -> tuple[Plane, Plane]:
    (y, x), (dy, dx) = primals, tangents
    # (x dy - y dx) / (x² + y²), each side scaled first: the squares of sides that
    # differ by 1e30 would lose the smaller one or overflow.
    size = jnp.maximum(x, y)
    u, v = divide(x, size), divide(y, size)
    change = divide(u * dy - v * dx, size)
    return angle(y, x), divide(change, u * u + v * v)
