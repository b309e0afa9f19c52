"""Two rectangles at an angle: their pose, the area of both and the area around both.

Planes are `(cx, cy, w, h, angle)`. A rectangle turned by a quarter is the same one with
its sides exchanged, and reflecting both changes no area. So every pair can be *folded*
until the first rectangle is turned by 0 to 45 degrees against the axes of the second:
the order of all corners is then known, and nothing has to be sorted.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._measure import Planes
from ._numerics import clamp, larger, largest, nonnegative, saturate, smaller

Pair = tuple[Array, Array]


class Pose(NamedTuple):
    """A rectangle A as seen from the centre of a rectangle B, along the axes of B.

    `x`, `y` is the centre of A, `cos`, `sin` its angle with sin >= 0 and cos > 0.7,
    `a`, `b` are its half sides; B is [-w, w] × [-h, h].
    """

    x: Array
    y: Array
    cos: Array
    sin: Array
    a: Array
    b: Array
    w: Array
    h: Array


class _Folding(NamedTuple):
    """What was folded away: the frame of B, exchanged sides, the reflection."""

    cos: Array
    sin: Array
    exchanged_a: Array
    exchanged_b: Array
    mirror: Array


def bounded(a: Planes, b: Planes) -> tuple[Planes, Planes]:
    """Both boxes with sides of at least 0, saturated so that areas around both fit."""
    limit = largest(jnp.result_type(*a, *b)) / 8

    def one(box: Planes) -> Planes:
        cx, cy, w, h = (saturate(p, limit) for p in box[:4])
        return cx, cy, nonnegative(w), nonnegative(h), box[4]

    return one(a), one(b)


def area(box: Planes) -> Array:
    """Width times height; negative sides count as zero."""
    return nonnegative(box[2]) * nonnegative(box[3])


def pose(a: Planes, b: Planes) -> Pose:
    """The folded pose of A as seen from B."""
    return _fold(a, b)[0]


def seen_from_a(pose: Pose) -> Pose:
    """The same pair with the rectangles exchanged."""
    x, y, cos, sin, a, b, w, h = pose
    # The angle changes its sign; reflecting y folds it back.
    return Pose(-(cos * x + sin * y), cos * y - sin * x, cos, sin, w, h, a, b)


def intersection(a: Planes, b: Planes) -> Array:
    """Area of the intersection, with its derivative in closed form."""
    return _intersection(_not_inverted(a), _not_inverted(b))


def _not_inverted(box: Planes) -> Planes:
    return (*box[:2], nonnegative(box[2]), nonnegative(box[3]), box[4])


class Slopes(NamedTuple):
    """Area of the intersection, and its derivatives in the numbers of both boxes."""

    area: Array
    a: Planes
    b: Planes


def slopes(a: Planes, b: Planes) -> Slopes:
    """The derivatives of `intersection`, of an inverted box as of an empty one."""
    return _slopes(_not_inverted(a), _not_inverted(b))


def pullback(
    a: Planes, b: Planes, slopes: Slopes, of_shared: Array, of_areas: Pair
) -> tuple[Planes, Planes]:
    """Cotangents of both boxes, of those of the intersection and of both areas."""

    def one(box: Planes, slopes: Planes, of_area: Array) -> Planes:
        x, y, w, h, angle = (of_shared * slope for slope in slopes)
        w = jnp.where(box[2] < 0, 0, w + of_area * nonnegative(box[3]))
        h = jnp.where(box[3] < 0, 0, h + of_area * nonnegative(box[2]))
        return x, y, w, h, angle

    return one(a, slopes.a, of_areas[0]), one(b, slopes.b, of_areas[1])


@jax.custom_jvp
def _intersection(a: Planes, b: Planes) -> Array:
    return _overlap_area(pose(a, b))


@_intersection.defjvp
def _intersection_jvp(
    primals: tuple[Planes, Planes], tangents: tuple[Planes, Planes]
) -> Pair:
    _, *both = _slopes(*primals)
    changes = [
        slope * tangent
        for slopes_of, tangents_of in zip(both, tangents, strict=True)
        for slope, tangent in zip(slopes_of, tangents_of, strict=True)
    ]
    return _intersection(*primals), functools.reduce(jnp.add, changes)


def _fold(a: Planes, b: Planes) -> tuple[Pose, _Folding]:
    # Differences first: exact for boxes that are near each other, wherever they are.
    dx, dy = a[0] - b[0], a[1] - b[1]
    odd_b, angle_b = _quarter_turns(b[4])
    cos_b, sin_b = _cos_sin(angle_b)
    odd, angle = _quarter_turns(a[4] - b[4])
    # The frame of B is folded as well, so A has turned against it by the sum of both.
    odd_a = odd != odd_b
    mirror = jnp.where(angle < 0, -1, 1).astype(angle.dtype)
    cos, sin = _cos_sin(mirror * angle)
    # Below this no corner moves by an ulp; above, 1 / sin and its square are finite.
    sin = jnp.where(sin < _parallel(sin.dtype), 0, sin)
    folded = Pose(
        cos_b * dx + sin_b * dy,
        mirror * (cos_b * dy - sin_b * dx),
        cos,
        sin,
        *(side / 2 for side in _exchange(odd_a, a[2], a[3])),
        *(side / 2 for side in _exchange(odd_b, b[2], b[3])),
    )
    return folded, _Folding(cos_b, sin_b, odd_a, odd_b, mirror)


def _exchange(mask: Array, x: Array, y: Array) -> Pair:
    return jnp.where(mask, y, x), jnp.where(mask, x, y)


def _parallel(dtype: jnp.dtype) -> float:
    return float(jnp.finfo(dtype).eps) ** 2


def _quarter_turns(angle: Array) -> tuple[Array, Array]:
    """Whether the angle holds an odd number of quarter turns, and the rest of it.

    The rest is in [-π/4, π/4] and keeps its relative accuracy: π/2 is subtracted in
    three parts, the first two so short that their multiples are exact.
    """
    bits = (jnp.finfo(angle.dtype).nmant + 1) // 2
    first = math.ldexp(round(math.ldexp(math.pi / 2, bits)), -bits)
    second = math.ldexp(round(math.ldexp(math.pi / 2 - first, 2 * bits)), -2 * bits)
    # The last term is what float64 leaves of π/2.
    third = (math.pi / 2 - first - second) + 6.123233995736766e-17
    turns = jnp.floor(angle * (2 / math.pi) + 0.5)
    rest = ((angle - turns * first) - turns * second) - turns * third
    # Where not even the turns are exact, an angle of a million turns, stay in range.
    rest = clamp(rest, -math.pi / 4, math.pi / 4)
    half = turns / 2
    return jnp.floor(half) != half, rest


@jax.custom_jvp
def _cos_sin(angle: Array) -> Pair:
    """Cosine and sine in [-π/4, π/4] by their series.

    `jnp.cos` and `jnp.sin` take any angle, which costs more than all the rest of the
    overlap on every backend.
    """
    square = angle * angle
    terms = 5 if jnp.finfo(angle.dtype).bits <= 32 else 8

    def series(start: int) -> Array:
        total = jnp.ones_like(square)
        for k in range(terms, 0, -1):
            divisor = (2 * k + start) * (2 * k + start - 1)
            total = 1 - square / divisor * total
        return total

    return series(0), angle * series(1)


@_cos_sin.defjvp
def _cos_sin_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Pair, Pair]:
    cos, sin = _cos_sin(primals[0])
    return (cos, sin), (-sin * tangents[0], cos * tangents[0])


def _overlap_area(pose: Pose) -> Array:
    """Green's theorem: the boundary of A, its height cut to B, integrated along x."""
    x, y, cos, sin, a, b, w, h = pose
    flat = sin == 0
    cos_inverse = 1 / cos
    # Of edges along the axes of B this makes any crossing lie far outside.
    sin_inverse = jnp.where(flat, largest(sin.dtype), 1 / jnp.where(flat, 1, sin))

    def edge(x: Array, y: Array, half: Array, run: Pair, rise: Pair) -> Array:
        """∫ clip(y, -h, h) dx along one edge that goes right and up, within B's width.

        The edge is (x, y) + t (run, rise), |t| <= half, each with its inverse.
        """
        start = clamp((-w - x) * run[1], -half, half)
        end = clamp((w - x) * run[1], -half, half)
        enters = clamp((-h - y) * rise[1], start, end)
        leaves = clamp((h - y) * rise[1], start, end)
        left = clamp(y + start * rise[0], -h, h)
        right = clamp(y + end * rise[0], -h, h)
        below_and_above = h * ((end - leaves) - (enters - start))
        return run[0] * (below_and_above + (leaves - enters) * (left + right) / 2)

    along, across = (cos, cos_inverse), (sin, sin_inverse)
    # The sides along A's width rise to the right. Those along its height fall, so they
    # are taken upside down.
    total = (
        edge(x - b * sin, y + b * cos, a, along, across)
        - edge(x + b * sin, y - b * cos, a, along, across)
        - edge(x + a * cos, -(y + a * sin), b, across, along)
        + edge(x - a * cos, -(y - a * sin), b, across, along)
    )
    most = 4 * jnp.minimum(a * b, w * h)
    # Boxes apart along one axis may hold NaN along the other one.
    nothing = 0 * jnp.abs(total)
    return jnp.where(_apart(pose), nothing, clamp(total, 0, most))


def _apart(pose: Pose) -> Array:
    """Whether one of the four sides' directions separates the two: exact zeros."""
    separated = [
        jnp.abs(distance) >= reach_a + reach_b
        for distance, reach_a, reach_b in projections(pose)
    ]
    return functools.reduce(jnp.logical_or, separated)


def projections(pose: Pose) -> list[tuple[Array, Array, Array]]:
    """Distance of the centres and reach of both, along the sides of B and of A."""
    x, y, cos, sin, a, b, w, h = pose
    return [
        (x, a * cos + b * sin, w),
        (y, a * sin + b * cos, h),
        (cos * x + sin * y, a, w * cos + h * sin),
        (cos * y - sin * x, b, w * sin + h * cos),
    ]


class _Chords(NamedTuple):
    """Of two opposite edges the parts inside the other rectangle.

    `total` and `difference` of their lengths; `moment`, the lengths times the distance
    of their middles from the middle of the edge, of the one less that of the other.
    """

    total: Array
    difference: Array
    moment: Array


def _slopes(a: Planes, b: Planes) -> Slopes:
    """Derivatives of the area in all ten numbers, and the area from them.

    The area changes by the normal velocity of an edge times its length inside the other
    rectangle. Moving both rectangles together changes nothing, which leaves the
    derivatives in the place and angle of B to those in the place and angle of A.
    Scaling both scales the area by the square, so it is half of all lengths times their
    derivatives (Euler's theorem on homogeneous functions).
    """
    folded, folding = _fold(a, b)
    cos, sin = folded.cos, folded.sin
    flat = sin == 0
    # One division for both inverses, since XLA writes out a division that many read.
    some = jnp.where(flat, 1, sin)
    inverse = 1 / (cos * some)
    inverses = some * inverse, jnp.where(flat, largest(sin.dtype), cos * inverse)
    sides, ends = _chords(folded, inverses)
    sides_b, ends_b = _chords(seen_from_a(folded), inverses)
    # The pull on A along the axes of B, unfolded, and then along x and y.
    right = cos * ends.difference - sin * sides.difference
    up = sin * ends.difference + cos * sides.difference
    area = (
        (folded.x * right + folded.y * up)
        + (folded.a * ends.total + folded.b * sides.total)
        + (folded.w * ends_b.total + folded.h * sides_b.total)
    ) / 2
    up = folding.mirror * up
    force_x = folding.cos * right - folding.sin * up
    force_y = folding.sin * right + folding.cos * up
    torque = folding.mirror * (sides.moment - ends.moment)
    swing = (a[0] - b[0]) * force_y - (a[1] - b[1]) * force_x
    sizes_a = _exchange(folding.exchanged_a, ends.total / 2, sides.total / 2)
    sizes_b = _exchange(folding.exchanged_b, ends_b.total / 2, sides_b.total / 2)
    return Slopes(
        nonnegative(area),
        (force_x, force_y, *sizes_a, torque),
        (-force_x, -force_y, *sizes_b, -torque - swing),
    )


def _chords(pose: Pose, inverses: Pair) -> tuple[_Chords, _Chords]:
    """Of A's edges along its width, and of those along its height, what lies in B.

    The inverses are those of cosine and sine, of a sine of zero a large number.
    """
    x, y, cos, sin, a, b, w, h = pose
    along, across = inverses
    flat = sin == 0
    if_flat, if_not = (jnp.where(flat, i, 0.5 - i).astype(x.dtype) for i in (0.5, 0))

    def chord(half: Array, steep: Pair, shallow: Pair) -> Pair:
        """Length inside the slabs |p| <= reach, and its moment about the middle.

        Along the edge the place p in the first slab changes by cos, in the other by
        sin. An edge along the second slab never crosses its border, or else, where it
        lies on it, in the middle of what the first slab leaves: it counts half, for of
        the two sides of the kink the one has all of it and the other nothing.
        """
        (p, reach), (q, other) = steep, shallow
        low = larger(-half, (-reach - p) * along)
        high = smaller(half, (reach - p) * along)
        middle = (low + high) * if_flat
        below, above = (
            # The large number is no slope.
            jnp.where(flat, jax.lax.stop_gradient(z), z)
            for z in (-other - q, other - q)
        )
        low = larger(low, below * across + middle)
        high = smaller(high, above * across + middle)
        length = nonnegative(high - low)
        return length, length * ((low + high) * if_not + middle)

    def both(one: Pair, other: Pair) -> _Chords:
        return _Chords(one[0] + other[0], one[0] - other[0], one[1] - other[1])

    top = chord(a, (x - b * sin, w), (y + b * cos, h))
    bottom = chord(a, (x + b * sin, w), (y - b * cos, h))
    # Upwards along A's height x falls: its slab is reflected.
    right = chord(b, (y + a * sin, h), (-x - a * cos, w))
    left = chord(b, (y - a * sin, h), (-x + a * cos, w))
    return both(top, bottom), both(right, left)


def hull_area(pose: Pose) -> Array:
    """Area of the convex hull of all eight corners.

    Going once round by the direction of the outward normal, the outer one of the two
    rectangles can change only between the normals of their edges, whose order is known.
    At each normal one of the two is further out and owns its edge there; where owners
    change, a bridge leads from corner to corner. Every decision is used on both its
    sides, so that rounding cannot tear the outline open.
    """
    x, y, cos, sin, a, b, w, h = pose
    over = [
        (x + i * a * cos - j * b * sin, y + i * a * sin + j * b * cos)
        for i, j in ((1, -1), (1, 1), (-1, 1), (-1, -1))
    ]
    under = [(i * w, j * h) for i, j in ((1, -1), (1, 1), (-1, 1), (-1, -1))]
    projected = projections(pose)
    outline: list[Pair] = []
    for quarter in range(4):
        sign = 1 if quarter < 2 else -1
        before, after = quarter, (quarter + 1) % 4
        # First the normal of an edge of B, then, up to 45 degrees later, one of A.
        for side, corners in (
            (quarter % 2, ((before, before), (before, after))),
            (quarter % 2 + 2, ((before, after), (after, after))),
        ):
            distance, reach_a, reach_b = projected[side]
            ahead = sign * distance + (reach_a - reach_b)
            owned = jnp.where(ahead > 0, 1, jnp.where(ahead == 0, 0.5, 0))
            owned = owned.astype(x.dtype)
            for of_a, of_b in corners:
                (px, py), (qx, qy) = over[of_a], under[of_b]
                other = 1 - owned
                outline.append((owned * px + other * qx, owned * py + other * qy))
    following = outline[1:] + outline[:1]
    crosses = [
        p[0] * q[1] - p[1] * q[0] for p, q in zip(outline, following, strict=True)
    ]
    return functools.reduce(jnp.add, crosses) / 2
