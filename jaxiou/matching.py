"""Who is responsible for which target: assigning anchors to targets.

Static shapes throughout: targets come padded, with `where` for the real ones, so one
compilation serves every count. No matrix of anchors × targets is written.
"""

__all__ = ["Assignment", "Sample", "match_anchors", "sample", "take_targets"]

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from . import _checks, _loops, _measure
from ._measure import Measure
from .matrix import AxisName, Operands, first_row, match
from .measures import iof, iou


class Assignment(NamedTuple):
    """For every anchor the target it is responsible for.

    Attributes:
        indices: `(*batch, n)` int32: index of the target, -1 for background, -2 for
            anchors that are neither (torchvision's numbers).
        values: `(*batch, n)`, larger is better: of `match_anchors` the best measure
            over the real targets, of others that with the assigned target; `-inf` where
            there is none.
        scores: `(*batch, n)` in [0, 1], what a classifier is to learn for the label of
            the target, 0 for background; None from assigners that say nothing of it.
    """

    indices: Int[Array, "*batch n"]
    values: Float[Array, "*batch n"]
    scores: Float[Array, "*batch n"] | None = None


class Sample(NamedTuple):
    """Anchors that were drawn: those with a target first.

    Attributes:
        indices: `(*batch, total)` int32 into the anchors; -1 in empty slots.
        valid: `(*batch, total)`, False in empty slots.
    """

    indices: Int[Array, "*batch total"]
    valid: Bool[Array, "*batch total"]


def match_anchors(
    anchors: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    where: _checks.Mask | None = None,
    where_anchors: _checks.Mask | None = None,
    ignore: _checks.Mask | None = None,
    positive: float = 0.5,
    negative: float = 0.4,
    force_match: bool = True,
    force_minimum: float | None = None,
    measure: Measure = iou,
    ignore_measure: Measure = iof,
    ignore_threshold: float = 0.5,
    axis_name: AxisName | None = None,
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
        where_anchors: `(*batch, n)`, False for anchors to leave out; they become -2.
        ignore: `(*batch, m)`, True for targets that are neither to be found nor to be
            missed (crowd, difficult): anchors on them that are not assigned to a real
            target become -2.
        positive: lowest value of an assigned anchor.
        negative: lowest value of an anchor that is not background.
        force_match: whether every target claims its best anchors.
        force_minimum: best value from which on a target does; None for any above the
            measure's minimum.
        measure: any measure.
        ignore_measure: how far an anchor lies on an ignored target; the part of the
            anchor's area inside it by default, since crowd regions are large.
        ignore_threshold: from this value on an anchor counts as lying on it.
        axis_name: inside of `jax.shard_map`, the axis or axes of the mesh over which
            the anchors are cut into parts, the targets being the same everywhere: every
            target's best anchor is that of all parts.

    Returns:
        `Assignment(indices, values, None)`.

    At the edge:
        No target at all gives all background. A target whose best value is only the
        measure's minimum (it intersects nothing, for IoU) claims no anchor. At ties the
        lowest target index wins. Boxes with NaN match nothing. Not differentiable.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast, `negative` above
            `positive`, an `ignore_measure` of other boxes than `measure`, or an
            `axis_name` outside of `jax.shard_map`.
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

    other = _measure.as_measure("match_anchors", ignore_measure, name="ignore_measure")
    wanted = _measure.as_measure("match_anchors", measure).coordinates
    if ignore is not None and other.coordinates != wanted:
        raise ValueError(
            f"jaxiou.match_anchors: `ignore_measure` is {other!r}, of boxes with "
            f"{other.coordinates} coordinates, wanted one of boxes with {wanted}, as "
            "`measure` has, such as `jaxiou.rotated_iof`."
        )

    def operands(measure: Measure, mask: _checks.Mask | None) -> Operands:
        return Operands(
            "match_anchors",
            measure,
            anchors,
            targets,
            where_anchors,
            mask,
            names=("anchors", "targets"),
            masks=("where_anchors", "where"),
        )

    # Checked against the targets' shape before the masks are combined.
    real = operands(measure, where).gathered()
    if ignore is not None:
        ignored = real.mask("ignore", ignore, real.boxes2.shape[1])
        on_ignored = _on_ignored(
            operands(ignore_measure, None), real.where2 & ignored, ignore_threshold
        )
        real.where2 = real.where2 & ~ignored
    if force_minimum is not None:
        real.measure = _above(real, force_minimum)
    best = match(real, ties=force_match, axis_name=axis_name)
    assigned = best.values1 >= positive
    if force_match:
        claims = best.values2 > real.measure.minimum
        row = best.indices2 - first_row(real, axis_name)
        assigned = assigned | best.tied1 | _claimed(row, claims, assigned)
    unassigned = jnp.where(best.values1 >= negative, -2, -1)
    if ignore is not None:
        unassigned = jnp.where(on_ignored, -2, unassigned)
    indices = jnp.where(assigned, best.indices1, unassigned)
    indices = jnp.where(real.where1, indices, -2)
    return Assignment(real.unbatch(indices), real.unbatch(best.values1))


def _above(operands: Operands, least: float) -> Measure:
    """The measure with a minimum such that what is above it is at least `least`."""
    _checks.number("match_anchors", "force_minimum", least, default="None")
    dtype = _checks.arithmetic_dtype(operands.boxes1, operands.boxes2)
    below = np.nextafter(np.asarray(least, dtype), np.asarray(-np.inf, dtype))
    minimum = max(float(below), operands.measure.minimum)
    return dataclasses.replace(operands.measure, minimum=minimum)


def _on_ignored(operands: Operands, ignored: Array, threshold: float) -> Array:
    """Whether each anchor lies on an ignored target."""
    operands.where2 = ignored
    return match(operands).values1 >= threshold


def _claimed(indices: Array, claims: Array, like: Array) -> Array:
    """Marks the best anchor of every claiming target."""

    def one(indices: Array, claims: Array, like: Array) -> Array:
        nowhere = like.shape[0]
        where = jnp.where(claims & (indices >= 0), indices, nowhere)
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
    _check_assignment("take_targets", assignment)
    array = _loops.replicate(jnp.asarray(targets))
    indices = _loops.replicate(assignment.indices)
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


def sample(assignment: Assignment, key: Array, *, positives: int, total: int) -> Sample:
    """Draws anchors for a loss: some with a target, the rest from the background.

    Every subset of `positives` anchors with a target is equally likely, all of them are
    taken where there are fewer, and likewise of the background until there are `total`.

    Args:
        assignment: result of an assigner, indices `(*batch, n)`.
        key: random key of `jax.random.key`.
        positives: most anchors with a target.
        total: slots in the result.

    Returns:
        `Sample(indices, valid)`: gather with them, as in `boxes[sampled.indices]`, and
        leave out what is not valid.

    At the edge:
        Anchors that are neither, -2, are never drawn. Slots stay empty where there are
        too few of both kinds; the background does not make up for what `positives`
        leaves out beyond `total`.

    Raises:
        ValueError: where the numbers are not static integers with 0 <= positives <=
            total.
        TypeError: where the assignment is not one.

    Example:
        >>> import jax
        >>> import jaxiou
        >>> found = jaxiou.Assignment(jax.numpy.array([-1, 2, -2, 0]), None)
        >>> drawn = jaxiou.sample(found, jax.random.key(0), positives=1, total=3)
        >>> print(drawn.valid)
        [ True  True False]

    Reference:
        S. Ren, K. He, R. Girshick, J. Sun, "Faster R-CNN", 2015, arXiv:1506.01497.
        detectron2's `subsample_labels`, whose results have as many rows as are found.
    """
    _check_assignment("sample", assignment)
    whole = all(isinstance(x, int | np.integer) for x in (positives, total))
    for name, value in (("positives", positives), ("total", total)):
        if not isinstance(value, int | np.integer) or (
            whole and not 0 <= value <= total
        ):
            raise ValueError(
                f"jaxiou.sample: `{name}` is {value!r}, wanted an integer, with "
                f"0 <= positives <= total: they are {positives!r} and {total!r}."
            )
    indices = _loops.replicate(assignment.indices)
    luck = jax.random.uniform(key, indices.shape)
    kind = jnp.where(indices >= 0, 0, jnp.where(indices == -1, 1, 2))
    place = jax.lax.broadcasted_iota(jnp.int32, indices.shape, indices.ndim - 1)
    # Those with a target come first, then the background, each in random order.
    order = jax.lax.sort((kind, luck, place), num_keys=2)[2]
    some, others = (
        (kind == k).sum(axis=-1, keepdims=True, dtype=jnp.int32) for k in (0, 1)
    )
    taken = jnp.minimum(some, positives)
    slot = jnp.arange(total, dtype=jnp.int32).reshape(*(1,) * (kind.ndim - 1), total)
    valid = slot < taken + jnp.minimum(others, total - taken)
    source = jnp.where(slot < taken, slot, slot - taken + some)
    padded = jnp.pad(order, [(0, 0)] * (kind.ndim - 1) + [(0, total)])
    drawn = jnp.take_along_axis(padded, jnp.where(valid, source, 0), axis=-1)
    return Sample(jnp.where(valid, drawn, -1), valid)


def _check_assignment(function: str, assignment: Any) -> None:
    if not hasattr(assignment, "indices"):
        raise TypeError(
            f"jaxiou.{function}: `assignment` is a {type(assignment).__name__}, "
            "wanted an Assignment, as `jaxiou.match_anchors` returns it; of indices "
            "alone make one with `jaxiou.Assignment(indices, values)`."
        )


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
    except (OverflowError, TypeError, ValueError):
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
