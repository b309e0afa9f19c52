"""Who is responsible for which target: assigning anchors to targets.

Static shapes throughout: targets come padded, with `where` for the real ones, so one
compilation serves every count. No matrix of anchors × targets is written.
"""

__all__ = ["Assignment", "match_anchors", "take_targets"]

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import _checks, _measure
from ._measure import Measure
from .matrix import Operands, match
from .measures import iof, iou


class Assignment(NamedTuple):
    """For every anchor the target it is responsible for.

    Attributes:
        indices: `(*batch, n)` int32: index of the target, -1 for background, -2 for
            anchors that are neither (torchvision's numbers).
        values: `(*batch, n)`, the anchor's best measure over the real targets, `-inf`
            where there is none.
    """

    indices: Int[Array, "*batch n"]
    values: Float[Array, "*batch n"]


def match_anchors(
    anchors: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    where: _checks.Mask | None = None,
    ignore: _checks.Mask | None = None,
    positive: float = 0.5,
    negative: float = 0.4,
    force_match: bool = True,
    measure: Measure = iou,
    ignore_measure: Measure = iof,
    ignore_threshold: float = 0.5,
) -> Assignment:
    """Assigns every anchor to its best target by thresholds on a measure.

    An anchor whose best measure is at least `positive` is assigned to that target,
    below `negative` it is background, in between neither. With `force_match`, all
    anchors that attain the best value of some target are assigned too, each to its own
    best target.

    Args:
        anchors: `(*batch, n, 4)`, or as many coordinates as the measure takes.
        targets: `(*batch, m, 4)`, padded; leading axes broadcast.
        where: `(*batch, m)`, False for padding.
        ignore: `(*batch, m)`, True for targets that are neither to be found nor to be
            missed (crowd, difficult): anchors on them that are not assigned to a real
            target become -2.
        positive: lowest value of an assigned anchor.
        negative: lowest value of an anchor that is not background.
        force_match: whether every target claims its best anchors.
        measure: any measure.
        ignore_measure: how far an anchor lies on an ignored target; the part of the
            anchor's area inside it by default, since crowd regions are large.
        ignore_threshold: from this value on an anchor counts as lying on it.

    Returns:
        `Assignment(indices, values)`.

    At the edge:
        No target at all gives all background. A target whose best value is only the
        measure's minimum (it intersects nothing, for IoU) claims no anchor. At ties the
        lowest target index wins. Boxes with NaN match nothing. Not differentiable.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast, or `negative`
            above `positive`.
        TypeError: on a `measure` that is not one, or masks that are not boolean.

    Example:
        >>> import jaxiou
        >>> anchors = [[0, 0, 4, 2], [1, 1, 4, 4], [6, 6, 9, 8], [0, 1, 5, 4]]
        >>> targets = [[1.0, 1.0, 5.0, 4.0], [0.0, 0.0, 0.0, 0.0]]
        >>> print(jaxiou.match_anchors(anchors, targets, where=[True, False]).indices)
        [-1  0 -1  0]

    Reference:
        S. Ren, K. He, R. Girshick, J. Sun, "Faster R-CNN", 2015, arXiv:1506.01497.
        torchvision's `Matcher` with `allow_low_quality_matches=True` does the same,
        except that a target that intersects nothing claims every anchor with IoU 0
        there. mmdetection gives a forced anchor to the target that forces it instead
        of the anchor's own best.
    """
    traced = _checks.is_traced(positive) or _checks.is_traced(negative)
    if not traced and negative > positive:
        raise ValueError(
            f"jaxiou.match_anchors: `negative` is {negative}, above `positive`, "
            f"{positive}; anchors in between are neither, so negative <= positive."
        )

    _measure.as_measure("match_anchors", ignore_measure, name="ignore_measure")

    def operands(measure: Measure, mask: _checks.Mask | None) -> Operands:
        return Operands(
            "match_anchors",
            measure,
            anchors,
            targets,
            None,
            mask,
            names=("anchors", "targets"),
            masks=("", "where"),
        )

    # Checked against the targets' shape before the masks are combined.
    real = operands(measure, where).gathered()
    if ignore is not None:
        ignored = real.mask("ignore", ignore, real.boxes2.shape[1])
        on_ignored = _on_ignored(
            operands(ignore_measure, None), real.where2 & ignored, ignore_threshold
        )
        real.where2 = real.where2 & ~ignored
    best = match(real, ties=force_match)
    assigned = best.values1 >= positive
    if force_match:
        claims = best.values2 > real.measure.minimum
        assigned = assigned | best.tied1 | _claimed(best.indices2, claims, assigned)
    unassigned = jnp.where(best.values1 >= negative, -2, -1)
    if ignore is not None:
        unassigned = jnp.where(on_ignored, -2, unassigned)
    indices = jnp.where(assigned, best.indices1, unassigned)
    return Assignment(real.unbatch(indices), real.unbatch(best.values1))


def _on_ignored(operands: Operands, ignored: Array, threshold: float) -> Array:
    """Whether each anchor lies on an ignored target."""
    operands.where2 = ignored
    return match(operands).values1 >= threshold


def _claimed(indices: Array, claims: Array, like: Array) -> Array:
    """Marks the best anchor of every claiming target."""

    def one(indices: Array, claims: Array, like: Array) -> Array:
        nowhere = like.shape[0]
        where = jnp.where(claims, indices, nowhere)
        return jnp.zeros_like(like).at[where].set(True, mode="drop")

    return jax.vmap(one)(indices, claims, like)


def take_targets(
    targets: _checks.ArrayLike, assignment: Assignment, *, fill: _checks.ArrayLike
) -> Array:
    """What each anchor is to learn: the row of its target, or a fill value.

    A plain `targets[indices]` would silently give background anchors the last target,
    since negative indices count from the end.

    Args:
        targets: `(*batch, m, ...)`: boxes, labels, anything with one row per target.
        assignment: result of an assigner, indices `(*batch, n)`.
        fill: value for anchors without a target: a number, a row, or a row per anchor,
            of a type that fits the targets.

    Returns:
        `(*batch, n, ...)` in the targets' dtype.

    At the edge:
        m may be 0: everything is fill.

    Raises:
        ValueError: where the leading axes of the two do not agree, or the fill value
            does not broadcast to the result.
        TypeError: where the fill value does not fit the targets' dtype, or the
            assignment is not one.

    Example:
        >>> import jaxiou
        >>> anchors = [[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0], [6.0, 6.0, 9.0, 8.0]]
        >>> found = jaxiou.match_anchors(anchors, [[1.0, 1.0, 5.0, 4.0]])
        >>> print(jaxiou.take_targets([7], found, fill=-1))
        [-1  7 -1]

    Reference:
        The gather after every assigner; torchvision clamps the indices and masks later.
    """
    if not hasattr(assignment, "indices"):
        raise TypeError(
            f"jaxiou.take_targets: `assignment` is a {type(assignment).__name__}, "
            "wanted an Assignment, as `jaxiou.match_anchors` returns it; of indices "
            "alone make one with `jaxiou.Assignment(indices, values)`."
        )
    array = _measure.replicate(jnp.asarray(targets))
    indices = _measure.replicate(assignment.indices)
    lead = indices.ndim - 1
    if array.ndim <= lead or array.shape[:lead] != indices.shape[:lead]:
        raise ValueError(
            f"jaxiou.take_targets: `targets` has shape {array.shape}, wanted leading "
            f"axes {indices.shape[:lead]} and one row per target, as `assignment` has "
            f"indices of shape {indices.shape}; broadcast the targets first."
        )
    size, rest = array.shape[lead], array.shape[lead + 1 :]
    filling = _fill(fill, array.dtype, (*indices.shape, *rest))
    if size == 0:
        return filling
    rows = indices.reshape(*indices.shape, *(1,) * len(rest))

    def gather(array: Array, indices: Array) -> Array:
        return jnp.take(array, indices, axis=0, mode="clip")

    for _ in range(lead):
        gather = jax.vmap(gather)
    return jnp.where(rows >= 0, gather(array, indices), filling)


def _fill(fill: Any, dtype: jnp.dtype, shape: tuple[int, ...]) -> Array:
    """The fill value in the dtype of the targets and the shape of the result."""
    wrong = TypeError(
        f"jaxiou.take_targets: `fill` is {fill!r}, which does not fit targets of "
        f"dtype {dtype}; convert one of the two."
    )
    # The numbers of a list, unlike an array of them, take on the targets' dtype.
    if jnp.result_type(dtype, *jax.tree.leaves(fill)) != dtype:
        raise wrong
    try:
        filling = jnp.asarray(fill, dtype)
    except OverflowError:
        raise wrong from None
    try:
        fits = jnp.broadcast_shapes(filling.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"jaxiou.take_targets: `fill` has shape {filling.shape}, wanted one that "
            f"broadcasts to {shape}, the result: a number, or a row of `targets`."
        )
    return jnp.broadcast_to(filling, shape)
