"""Distances of boxes read as Gaussians, and the measures made of them.

Larger is better for a measure and worse for a distance, so a distance is refused where
a measure is wanted: matching, suppression and losses would take the worst pair for the
best. `similarity` makes a measure of a distance.
"""

__all__ = [
    "Distance",
    "bhattacharyya_distance",
    "gwd_distance",
    "jeffreys_distance",
    "kld_distance",
    "similarity",
]

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks, _numerics
from ._measure import Formula, Measure, Planes, measure
from ._numerics import nonnegative
from .gaussian import Pair, bhattacharyya, flattened, wasserstein


@dataclass(frozen=True, repr=False)
class Distance:
    """A number that says how far two boxes are apart; larger is worse.

    Calling it is aligned, as for a measure, and carries the same kind of gradients. It
    is no `Measure`: matching, suppression and losses would take the worst pairs for the
    best. `similarity` makes a measure of it.

    Attributes:
        values: the formula with its shapes, dtypes and derivatives.
    """

    values: Measure

    @property
    def plain(self) -> "Distance":
        """The same distance for forward mode; see `Measure.plain`."""
        return Distance(self.values.plain)

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.values.__doc__)
        object.__setattr__(self, "__module__", self.values.__module__)
        object.__setattr__(self, "__name__", self.values.name)

    def __call__(
        self, boxes1: _checks.Boxes, boxes2: _checks.Boxes
    ) -> Float[Array, "*batch"]:
        return self.values(boxes1, boxes2)

    @property
    def not_a_measure(self) -> str:
        """What to do where a measure is wanted."""
        return f"make one of it with `jaxiou.similarity(jaxiou.{self!r}, tau=1.0)`"

    def __repr__(self) -> str:
        return repr(self.values)


def _distance(*, symmetric: bool, scale_free: bool) -> Callable[[Formula], Distance]:
    def make(formula: Formula) -> Distance:
        return Distance(
            measure(
                minimum=0.0,
                maximum=0.0,
                coordinates=5,
                symmetric=symmetric,
                scale_free=scale_free,
            )(formula)
        )

    return make


@_distance(symmetric=True, scale_free=False)
def gwd_distance(a: Planes, b: Planes) -> Array:
    """Gaussian Wasserstein distance of boxes that turn.

    W₂² = |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁^½ Σ₂ Σ₁^½)^½).

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), radians.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, W₂ in the unit of the boxes, at least 0, 0 for the same rectangle.
        Symmetric; grows with the boxes. Not a measure: see `similarity`.

    At the edge:
        Finite for empty boxes. At distance 0 the gradient is 0. Two squares: their
        angles do not matter.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.gwd_distance(a, b):.5f}")
        2.01038

    Reference:
        X. Yang, J. Yan, Q. Ming, W. Wang, X. Zhang, Q. Tian, 2021, arXiv:2101.11952.
        mmrotate clamps five times at 1e-7, which leaves boxes of 1e-3 without gradient;
        its `normalize` divides by 2 (|Σ₁| |Σ₂|)^(1/8).
    """
    return wasserstein(a, b)


def _log_excess(one: Array, other: Array) -> Array:
    """λ - 1 - log λ of the ratio λ of two variances, given standard deviations."""
    ratio = (one - other) * (one + other) / (other * other)
    # Near 1 without cancellation; far from it λ - 1 may round to -1.
    near = jnp.abs(ratio) < 0.5
    log = jnp.log1p(jnp.where(near, ratio, 0))
    log = jnp.where(near, log, 2 * (jnp.log(one) - jnp.log(other)))
    return nonnegative(ratio - log)


def _divergence(pair: Pair, *, of_first: bool) -> Array:
    """KL divergence of the first from the second, or the other way."""
    x1, y1, x2, y2, a1, b1, a2, b2, _ = pair
    # The divergence inverts the covariance of the one it is taken from.
    x, y, a, b, c, d = (
        (x2, y2, a2, b2, a1, b1) if of_first else (x1, y1, a1, b1, a2, b2)
    )
    place = (x / a) ** 2 + (y / b) ** 2
    sizes = _log_excess(c, a) + _log_excess(d, b)
    return nonnegative(place + sizes + pair.turn / (a * a) / (b * b)) / 2


@_distance(symmetric=False, scale_free=True)
def kld_distance(a: Planes, b: Planes) -> Array:
    """Kullback-Leibler divergence of the first box's Gaussian from the second's.

    KL(N₁ ‖ N₂) = ½ [(μ₁ - μ₂)ᵀ Σ₂⁻¹ (μ₁ - μ₂) + tr(Σ₂⁻¹ Σ₁) + ln(|Σ₂| / |Σ₁|) - 2]:
    distances are measured in sides of the *second* box.

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), radians.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, at least 0, 0 for the same rectangle. Not symmetric; free of scale.
        Not a measure: see `similarity`.

    At the edge:
        Infinite by definition between a flat box and another; sides shorter than 1e-6
        (float32) of the longest side of both count as that, and keep their gradient.
        Two squares: their angles do not matter.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.kld_distance(a, b):.5f}")
        0.99517

    Reference:
        X. Yang, X. Yang, J. Yang, Q. Ming, W. Wang, Q. Tian, J. Yan, "Learning
        High-Precision Bounding Box for Rotated Object Detection via Kullback-Leibler
        Divergence", 2021, arXiv:2106.01883. mmrotate's `kld_loss` is this with
        (targets, predictions); its first version the other way, without the ½.
    """
    return _divergence(flattened(a, b), of_first=True)


@_distance(symmetric=True, scale_free=True)
def jeffreys_distance(a: Planes, b: Planes) -> Array:
    """Jeffreys divergence: the mean of both Kullback-Leibler divergences.

    J = ½ KL(N₁ ‖ N₂) + ½ KL(N₂ ‖ N₁).

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), radians.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, at least 0, 0 for the same rectangle. Symmetric; free of scale. Not
        a measure: see `similarity`.

    At the edge:
        As for `kld_distance`.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.jeffreys_distance(a, b):.5f}")
        1.08181

    Reference:
        H. Jeffreys, "An invariant form for the prior probability in estimation
        problems", 1946, who has the sum; the mean is that of mmrotate's `jd_loss`.
    """
    pair = flattened(a, b)
    return (_divergence(pair, of_first=True) + _divergence(pair, of_first=False)) / 2


@_distance(symmetric=True, scale_free=True)
def bhattacharyya_distance(a: Planes, b: Planes) -> Array:
    """Bhattacharyya distance of the Gaussians of two boxes.

    B = ⅛ (μ₁ - μ₂)ᵀ Σ⁻¹ (μ₁ - μ₂) + ½ ln(|Σ| / √(|Σ₁| |Σ₂|)), Σ = (Σ₁ + Σ₂) / 2.

    Args:
        boxes1: `(*batch, 5)`, (cx, cy, w, h, angle), radians.
        boxes2: `(*batch, 5)`, leading axes broadcast.

    Returns:
        `(*batch)`, at least 0, 0 for the same rectangle. Symmetric; free of scale. Not
        a measure: see `similarity`.

    At the edge:
        As for `kld_distance`.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> print(f"{jaxiou.bhattacharyya_distance(a, b):.5f}")
        0.22000

    Reference:
        A. Bhattacharyya, 1943; as a loss the `bcd` of mmrotate and, with variances of
        w²/12, the second form of ProbIoU, arXiv:2106.06072.
    """
    return bhattacharyya(flattened(a, b), variance=1.0)


def similarity(
    distance: Distance, *, tau: float = 1.0, root: bool = False, log: bool = False
) -> Measure:
    """A measure of a distance: τ / (τ + f(d)).

    f is the identity; with `root` the square root, with `log` ln(1 + ·), with both the
    logarithm of the root.

    Args:
        distance: such as `gwd_distance`; of `(*batch, 5)` boxes.
        tau: value of f(d) at which the similarity is one half; greater than 0.
        root: take the square root, which turns a divergence into a length.
        log: take the logarithm, which keeps the gradient of far boxes from vanishing.

    Returns:
        A measure in [0, 1]: 1 for identical boxes, towards 0 as they move apart.

    At the edge:
        Nowhere flat: far boxes keep a gradient as long as the distance itself does not
        saturate. With `root` the gradient at identical boxes is 0.

    Raises:
        TypeError: on what is not a distance.
        ValueError: on a tau that is not greater than 0.

    Example:
        >>> import jaxiou
        >>> a, b = [3.0, 2.0, 6.0, 2.0, 0.5], [4.0, 3.0, 5.0, 3.0, -0.2]
        >>> kld = jaxiou.similarity(jaxiou.kld_distance, tau=1.0, log=True)
        >>> print(f"{kld(a, b):.5f}, {jaxiou.box_loss(a, b, measure=kld):.5f}")
        0.59146, 0.40854

    Reference:
        X. Yang et al., arXiv:2101.11952, arXiv:2106.01883, whose losses are
        1 - 1 / (τ + f(d)): 1 - similarity / τ, which is not 0 for identical boxes
        unless τ = 1.
    """
    if not isinstance(distance, Distance):
        raise TypeError(
            f"jaxiou.similarity: `distance` is {distance!r}, wanted a distance such as "
            "`jaxiou.kld_distance`; a measure needs no conversion."
        )
    if not tau > 0:
        raise ValueError(
            f"jaxiou.similarity: `tau` is {tau!r}, wanted a number greater than 0."
        )
    # The measure itself says where derivatives come from.
    values = replace(distance.values, forward=False)
    made = measure(
        minimum=0.0,
        coordinates=values.coordinates,
        symmetric=values.symmetric,
        scale_free=values.scale_free,
    )(_similarity)
    found: Measure = made(distance=values, tau=tau, root_first=root, log=log)
    return replace(found, forward=distance.values.forward, name="similarity")


def _similarity(
    a: Planes, b: Planes, *, distance: Measure, tau: float, root_first: bool, log: bool
) -> Array:
    """τ / (τ + f(d)) of a distance."""
    value = distance.planes(a, b)
    value = _numerics.root(value) if root_first else value
    value = jnp.log1p(value) if log else value
    return tau / (tau + value)
