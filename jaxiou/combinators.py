"""Measures made from measures: what papers do to the terms of another one.

A base is a measure whose formula returns its terms, the overlap and the penalties that
are subtracted from it: `iou`, `giou`, `diou`, `ciou`, `eiou`, `siou`, `shape_iou`, ...
A combinator changes the terms and returns them again, so that combinators compose where
the order makes sense. Other bases are refused.
"""

__all__ = ["alpha_iou", "focaler", "inner_iou"]

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import _checks
from ._measure import Measure, Planes, as_measure, measure
from ._numerics import nonnegative, power
from .measures import _centre_offset, _iou_and_union, _sides, iou


def _penalties(function: str, base: Any) -> int:
    """How many penalties a base has; refuses what cannot be one."""
    base = as_measure(function, base, name="base")
    plane = jax.ShapeDtypeStruct((), jnp.float32)
    planes = (plane,) * base.coordinates
    terms = jax.eval_shape(
        lambda a, b: base.formula(a, b, **dict(base.parameters)), planes, planes
    )
    if not isinstance(terms, tuple) or base.coordinates != 4:
        raise ValueError(
            f"jaxiou.{function}: `base` is {base!r}, wanted a measure of xyxy boxes "
            "whose formula returns its terms, an overlap and penalties, such as iou, "
            "giou, diou, ciou, eiou, siou or shape_iou."
        )
    return len(terms) - 1


def _flags(base: Measure) -> dict[str, Any]:
    """What a measure has from its base."""
    return {"symmetric": base.symmetric, "scale_free": base.scale_free}


def _alpha_given(*, alpha: float, base: Measure) -> dict[str, Any]:
    _checks.number("alpha_iou", "alpha", alpha, above=0, default="3.0")
    count = _penalties("alpha_iou", base)
    if base.minimum == -float("inf"):
        raise ValueError(
            f"jaxiou.alpha_iou: `base` is {base!r}, whose penalties have no bound and "
            "would overflow, wanted a measure with a minimum, such as iou, giou, diou "
            "or ciou."
        )
    # Of terms whose sum is given: powers above 1 are largest in one of them, powers
    # below 1 where they are equal.
    most = max(-base.minimum, 0.0) ** alpha * max(count, 1) ** max(1 - alpha, 0)
    return {"minimum": -most, **_flags(base)}


@measure(given=_alpha_given)
def alpha_iou(
    a: Planes, b: Planes, *, alpha: float = 3.0, base: Measure = iou
) -> Planes:
    """Alpha-IoU: every term of a measure raised to a power.

    IoU^α, IoU^α - ((C - U) / C)^α for GIoU, IoU^α - (ρ² / c²)^α for DIoU and IoU^α -
    (ρ² / c²)^α - (α_v v)^α for CIoU.

    Args:
        alpha: the power, above 0; more than 1 favours boxes that already fit.
        base: a measure that returns its terms: `iou`, `giou`, `diou`, `ciou`, ...

    Returns:
        A measure with maximum 1, for identical boxes. Symmetric and free of scale where
        the base is.

    At the edge:
        As the base. A power below 1 continues as a parabola below 1e-6, so that the
        gradient stays finite, for sides from 1e-30 on (float32).

    Raises:
        ValueError: on a power that is not positive, or a base without terms or without
            a minimum.
        TypeError: on a base that is no measure, or an array as parameter.

    Example:
        >>> import jaxiou
        >>> measure = jaxiou.alpha_iou(alpha=3.0, base=jaxiou.diou)
        >>> print(measure([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.009362813

    Reference:
        J. He, S. Erfani, X. Ma, J. Bailey, Y. Chi, X.-S. Hua, "Alpha-IoU: A Family of
        Power Intersection over Union Losses for Bounding Box Regression", 2021,
        arXiv:2110.13675. The authors' code adds 1e-9 inside of the powers.
    """
    overlap, *penalties = base.terms(a, b)
    return power(overlap, alpha), *(power(penalty, alpha) for penalty in penalties)


def _inner_given(*, ratio: float, base: Measure) -> dict[str, Any]:
    _checks.number("inner_iou", "ratio", ratio, above=0, default="0.7")
    _penalties("inner_iou", base)
    if "base" in dict(base.parameters):
        raise ValueError(
            f"jaxiou.inner_iou: `base` is {base!r}, whose overlap is no longer the IoU "
            "that the inner one would replace; put inner_iou inside, as in "
            f"`{base.name}(base=inner_iou(...))`."
        )
    return {"minimum": base.minimum, **_flags(base)}


@measure(given=_inner_given)
def inner_iou(a: Planes, b: Planes, *, ratio: float, base: Measure = iou) -> Planes:
    """Inner-IoU: a measure with the IoU of boxes shrunk or grown about their centres.

    IoU(ratio · A, ratio · B) minus the penalties of the base for A and B themselves.

    Args:
        ratio: the sides of the inner boxes over those of the boxes, above 0; the
            authors use 0.5 to 1.5.
        base: a measure that returns its terms and whose overlap is the IoU: `iou`,
            `giou`, `diou`, `ciou`, `eiou`, `siou`, ...

    Returns:
        A measure with maximum 1, for identical boxes. Symmetric and free of scale where
        the base is.

    At the edge:
        As the base; with a ratio below 1 overlapping boxes can have disjoint inner
        ones, whose overlap has no gradient.

    Raises:
        ValueError: on a ratio that is not positive, or a base without terms or whose
            overlap is not the IoU.
        TypeError: on a base that is no measure, or an array as parameter.

    Example:
        >>> import jaxiou
        >>> measure = jaxiou.inner_iou(ratio=1.25, base=jaxiou.siou)
        >>> print(measure([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.19311236

    Reference:
        H. Zhang, C. Xu, S. Zhang, "Inner-IoU: More Effective Intersection over Union
        Loss with Auxiliary Bounding Box", 2023, arXiv:2311.02877. The weight α of CIoU
        is that of the boxes themselves, as in the authors' code.
    """
    (w1, h1), (w2, h2), (dx, dy) = _sides(a), _sides(b), _centre_offset(a, b)
    w1, h1, w2, h2 = (ratio * side / 2 for side in (w1, h1, w2, h2))
    # In the frame of the second box, which keeps the digits of boxes far away.
    inner1 = (dx - w1, dy - h1, dx + w1, dy + h1)
    inner2 = (-w2, -h2, w2, h2)
    return _iou_and_union(inner1, inner2)[0], *base.terms(a, b)[1:]


def _focaler_given(*, lower: float, upper: float, base: Measure) -> dict[str, Any]:
    _checks.number("focaler", "lower", lower, least=0, most=1, default="0.0")
    _checks.number("focaler", "upper", upper, above=lower, most=1, default="0.95")
    _penalties("focaler", base)
    return {"minimum": base.minimum, **_flags(base)}


def _clipped(x: Array) -> Array:
    # By selection: an overlap of 0 keeps the one-sided derivative.
    x = nonnegative(x)
    return jnp.where(x > 1, 1, x)


@measure(given=_focaler_given)
def focaler(
    a: Planes,
    b: Planes,
    *,
    lower: float = 0.0,
    upper: float = 0.95,
    base: Measure = iou,
) -> Planes:
    """Focaler-IoU: a measure whose overlap is stretched over an interval.

    The overlap of the base becomes clip((IoU - lower) / (upper - lower), 0, 1); its
    penalties stay. Hence a loss L - IoU' + IoU for the loss L of the base.

    Args:
        lower: overlap that counts as none, in [0, 1].
        upper: overlap that counts as full, in (lower, 1].
        base: a measure that returns its terms: `iou`, `diou`, `siou`, ...

    Returns:
        A measure with maximum 1, for identical boxes. Symmetric and free of scale where
        the base is.

    At the edge:
        The overlap has no gradient outside of the interval; the penalties have theirs.

    Raises:
        ValueError: on limits that are not 0 <= lower < upper <= 1, or a base without
            terms.
        TypeError: on a base that is no measure, or an array as parameter.

    Example:
        >>> import jaxiou
        >>> measure = jaxiou.focaler(lower=0.1, upper=0.9, base=jaxiou.diou)
        >>> print(measure([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.064732134

    Reference:
        H. Zhang, S. Zhang, "Focaler-IoU: More Focused Intersection over Union Loss",
        2024, arXiv:2401.10525.
    """
    overlap, *penalties = base.terms(a, b)
    return _clipped((overlap - lower) / (upper - lower)), *penalties
