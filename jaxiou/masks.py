"""Losses of pixel masks: arrays of one number per pixel, of any rank.

`axis` names the axes of one mask; the others are a batch, and nothing is reduced over
them.
"""

__all__ = [
    "dice_loss",
    "jaccard_loss",
    "lovasz_hinge",
    "lovasz_softmax",
    "tversky_loss",
]

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks, _loops, _numerics

Axis: TypeAlias = int | Sequence[int] | None


def jaccard_loss(
    predictions: _checks.ArrayLike,
    targets: _checks.ArrayLike,
    *,
    axis: Axis,
    where: _checks.Mask | None = None,
    soft_labels: bool = True,
) -> Float[Array, "..."]:
    """1 - soft Jaccard index of two masks, 1 - IoU of hard ones.

    L = 1 - Σtp / (Σt + Σp - Σtp), the sums over the pixels of one mask. Where labels
    are soft, the common part of a pixel is min(t, p) instead of tp: the two agree on
    labels 0 and 1, but tp has its least loss beside a soft target.

    Args:
        predictions: probabilities in [0, 1] of any shape, `(batch, height, width,
            classes)` for example; sigmoid or softmax comes first.
        targets: labels of the same shape, in [0, 1], or bool, or integers 0 and 1.
        axis: axis or axes of one mask, None for all: `(1, 2)` gives a loss per image
            and class there, `(1, 2, 3)` one per image.
        where: bool, broadcasts to the shape of the masks; False for pixels to leave
            out ("void", padding).
        soft_labels: False for the product form on soft labels too.

    Returns:
        The shape of the masks without `axis`, in [0, 1]: 0 for equal masks, 1 for
        disjoint ones. In the floating dtype of the inputs (float32 where none is), but
        summed in float32 at least: 512 × 512 pixels overflow half precision.

    At the edge:
        Two empty masks, 0/0, give loss 0 with gradient 0, and so does a mask without
        any pixel left. Otherwise an empty target gives 1 whatever is predicted, with
        gradient 0. In the product form equal *soft* masks do not give 0. Pixels left
        out have gradient 0, also where they hold NaN.

    Raises:
        ValueError: when the shapes differ, `where` does not broadcast to them, or
            `axis` names no axis of the masks.
        TypeError: on complex masks, or a `where` that is not boolean.

    Example:
        >>> import jaxiou
        >>> predictions = [[0.8, 0.4, 0.0], [0.6, 0.2, 0.0]]
        >>> targets = [[1, 1, 0], [0, 0, 0]]
        >>> print(jaxiou.jaccard_loss(predictions, targets, axis=None))
        0.5714286

    Reference:
        M. A. Rahman, Y. Wang, "Optimizing Intersection-Over-Union in Deep Neural
        Networks for Image Segmentation", 2016; soft labels: Z. Wang, X. Ning, M. B.
        Blaschko, "Jaccard Metric Losses: Optimizing the Jaccard Index with Soft
        Labels", 2023, arXiv:2302.05666. The widely copied TensorFlow code is
        `iou_loss(y_true, y_pred)`: targets come *first* there, with `axis=(1, 2, 3)` of
        a 4-D batch. Other libraries add a smoothing constant to both sides of the
        fraction, which bends small masks.
    """
    masks = operands("jaccard_loss", predictions, targets, where)
    return _tversky("jaccard_loss", *masks, axis, soft_labels, 1.0, 1.0)


def dice_loss(
    predictions: _checks.ArrayLike,
    targets: _checks.ArrayLike,
    *,
    axis: Axis,
    where: _checks.Mask | None = None,
    soft_labels: bool = True,
) -> Float[Array, "..."]:
    """1 - soft Dice index of two masks, which is the F1 score of hard ones.

    L = 1 - 2 Σtp / (Σt + Σp), with min(t, p) in place of tp on soft labels.

    Args:
        predictions: probabilities in [0, 1] of any shape.
        targets: labels of the same shape, in [0, 1], or bool, or integers 0 and 1.
        axis: axis or axes of one mask, None for all.
        where: bool, broadcasts to the shape of the masks; False leaves pixels out.
        soft_labels: False for the product form on soft labels too.

    Returns:
        As `jaccard_loss`, of which it is J / (2 - J).

    At the edge:
        As `jaccard_loss`: two empty masks give 0, an empty target otherwise 1.

    Raises:
        ValueError: when the shapes differ, `where` does not broadcast to them, or
            `axis` names no axis of the masks.
        TypeError: on complex masks, or a `where` that is not boolean.

    Example:
        >>> import jaxiou
        >>> predictions = [[0.8, 0.4, 0.0], [0.6, 0.2, 0.0]]
        >>> targets = [[1, 1, 0], [0, 0, 0]]
        >>> print(jaxiou.dice_loss(predictions, targets, axis=None))
        0.4

    Reference:
        F. Milletari, N. Navab, S. Ahmadi, "V-Net", 2016, arXiv:1606.04797, without the
        squares in its denominator; soft labels: Z. Wang, T. Popordanoska, J. Bertels,
        R. Lemmens, M. B. Blaschko, "Dice Semimetric Losses", 2023, arXiv:2303.16296.
        Optax's `dice_loss` (0.2.8) is the product form with 1 added on both sides of
        the fraction; with `apply_softmax=False` it fails under `jit`.
    """
    masks = operands("dice_loss", predictions, targets, where)
    return _tversky("dice_loss", *masks, axis, soft_labels, 0.5, 0.5)


def tversky_loss(
    predictions: _checks.ArrayLike,
    targets: _checks.ArrayLike,
    *,
    axis: Axis,
    alpha: float,
    beta: float,
    where: _checks.Mask | None = None,
    soft_labels: bool = True,
) -> Float[Array, "..."]:
    """1 - Tversky index: false positives and false negatives with weights of their own.

    L = 1 - TP / (TP + α FP + β FN) with TP = Σtp, FP = Σ(p - tp), FN = Σ(t - tp), and
    min(t, p) in place of tp on soft labels.

    Args:
        predictions: probabilities in [0, 1] of any shape.
        targets: labels of the same shape, in [0, 1], or bool, or integers 0 and 1.
        axis: axis or axes of one mask, None for all.
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0; more than `alpha` finds more of
            rare things. 1 and 1 are `jaccard_loss`, 0.5 and 0.5 `dice_loss`.
        where: bool, broadcasts to the shape of the masks; False leaves pixels out.
        soft_labels: False for the product form on soft labels too.

    Returns:
        The shape of the masks without `axis`, in [0, 1].

    At the edge:
        As `jaccard_loss`: two empty masks give 0, an empty target otherwise 1, unless
        `alpha` is 0: then nothing is wrong with it.

    Raises:
        ValueError: when the shapes differ, `where` does not broadcast to them, `axis`
            names no axis of the masks, or a weight is no number or negative.
        TypeError: on complex masks, or a `where` that is not boolean.

    Example:
        >>> import jaxiou
        >>> predictions = [[0.8, 0.4, 0.0], [0.6, 0.2, 0.0]]
        >>> targets = [[1, 1, 0], [0, 0, 0]]
        >>> print(jaxiou.tversky_loss(
        ...     predictions, targets, axis=None, alpha=0.3, beta=0.7
        ... ))
        0.4

    Reference:
        S. S. M. Salehi, D. Erdogmus, A. Gholipour, "Tversky Loss Function for Image
        Segmentation Using 3D Fully Convolutional Deep Networks", 2017,
        arXiv:1706.05721.
    """
    for name, weight in (("alpha", alpha), ("beta", beta)):
        _checks.number("tversky_loss", name, weight, least=0, default="0.5")
    masks = operands("tversky_loss", predictions, targets, where)
    return _tversky("tversky_loss", *masks, axis, soft_labels, alpha, beta)


def _tversky(
    function: str,
    p: Array,
    t: Array,
    where: Array | None,
    axis: Axis,
    soft_labels: bool,
    alpha: float,
    beta: float,
) -> Array:
    dtype = _checks.result_dtype(p, t)
    p, t = _soft(p, where), _soft(t, where)
    axes = axes_of(function, axis, p.ndim)
    # At a tie the slope is that of the product: a hard label cannot be passed.
    tie = t + t * (p - t)
    hit = jnp.where(p < t, p, jnp.where(p > t, t, tie)) if soft_labels else t * p
    missed = alpha * (p - hit) + beta * (t - hit)
    # 1 - I / U as (U - I) / U: 0/0 is then no loss, and equal masks give exactly 0.
    # Written out before the sums, which would go through the formula one by one.
    whole, missed = (x.sum(axis=axes) for x in _loops.together((hit + missed, missed)))
    return _numerics.fraction(missed, whole).astype(dtype)


def lovasz_hinge(
    logits: _checks.ArrayLike,
    targets: _checks.ArrayLike,
    *,
    axis: Axis,
    where: _checks.Mask | None = None,
) -> Float[Array, "..."]:
    """The Lovász extension of 1 - IoU, of the hinge errors of binary logits.

    The errors 1 - s·logit, with s = ±1 the label, are sorted; each positive one counts
    as much as 1 - IoU grows when its pixel goes wrong after all those before it.

    Args:
        logits: scores of any shape, positive for foreground.
        targets: hard labels of the same shape, bool or 0 and 1.
        axis: axis or axes of one mask, None for all.
        where: bool, broadcasts to the shape of the masks; False leaves pixels out.

    Returns:
        The shape of the masks without `axis`, at least 0 and without a bound; in the
        floating dtype of the logits, computed in float32 at least.

    At the edge:
        Without a target only the largest error counts. Without any pixel left it is 0.
        At equal errors the pixel that comes first in memory is taken to go wrong first,
        which changes gradients and no value. Pixels left out have gradient 0.

    Raises:
        ValueError: when the shapes differ, `where` does not broadcast to them, or
            `axis` names no axis of the masks.
        TypeError: on complex logits, or a `where` that is not boolean.

    Example:
        >>> import jaxiou
        >>> logits = [2.0, -0.5, 0.25, -3.0]
        >>> print(jaxiou.lovasz_hinge(logits, [1, 1, 0, 0], axis=None))
        0.9583334

    Reference:
        M. Berman, A. R. Triki, M. B. Blaschko, "The Lovász-Softmax Loss", 2018,
        arXiv:1705.08790.
    """
    scores, labels, mask = operands("lovasz_hinge", logits, targets, where, "logits")
    dtype = _checks.result_dtype(scores)
    scores, labels = _soft(scores, mask), _soft(labels, mask)
    errors = 1 - scores * (2 * labels - 1)
    axes = axes_of("lovasz_hinge", axis, errors.ndim)
    return _lovasz(errors, labels > 0, mask, axes).astype(dtype)


def lovasz_softmax(
    predictions: _checks.ArrayLike,
    targets: _checks.ArrayLike,
    *,
    axis: Axis,
    where: _checks.Mask | None = None,
) -> Float[Array, "..."]:
    """The Lovász extension of 1 - IoU, of the errors |t - p| of probabilities.

    One loss per class and nothing averaged: the paper takes the mean over the classes
    that occur, `jnp.sum(loss, where=targets.any(axis)) / count`.

    Args:
        predictions: probabilities of any shape, `(batch, height, width, classes)` for
            example; softmax comes first.
        targets: hard labels of the same shape, bool or 0 and 1; of class ids
            `jax.nn.one_hot(labels, classes)`.
        axis: axis or axes of one mask, None for all: `(0, 1, 2)` gives a loss per class
            of the whole batch there, `(1, 2)` one per image and class.
        where: bool, broadcasts to the shape of the masks; False leaves pixels out.

    Returns:
        The shape of the masks without `axis`, in [0, 1] up to the rounding of the sum;
        in the floating dtype of the predictions, computed in float32 at least.

    At the edge:
        Without a target only the largest error counts. Without any pixel left it is 0.
        At equal errors the pixel that comes first in memory is taken to go wrong first,
        which changes gradients and no value. Pixels left out have gradient 0.

    Raises:
        ValueError: when the shapes differ, `where` does not broadcast to them, or
            `axis` names no axis of the masks.
        TypeError: on complex predictions, or a `where` that is not boolean.

    Example:
        >>> import jaxiou
        >>> predictions = [0.75, 0.5, 0.25, 0.0]
        >>> print(jaxiou.lovasz_softmax(predictions, [1, 1, 0, 0], axis=None))
        0.375

    Reference:
        M. Berman, A. R. Triki, M. B. Blaschko, "The Lovász-Softmax Loss", 2018,
        arXiv:1705.08790.
    """
    p, labels, mask = operands("lovasz_softmax", predictions, targets, where)
    dtype = _checks.result_dtype(p)
    p, labels = _soft(p, mask), _soft(labels, mask)
    axes = axes_of("lovasz_softmax", axis, p.ndim)
    return _lovasz(jnp.abs(labels - p), labels > 0, mask, axes).astype(dtype)


def _lovasz(
    errors: Array, labels: Array, where: Array | None, axes: tuple[int, ...]
) -> Array:
    """Σ of the positive errors, each times what 1 - IoU grows by at its place.

    The weights are constant between two orders, so they are the gradient, and no
    derivative goes through the sorting.
    """
    batch = [size for k, size in enumerate(errors.shape) if k not in axes]
    pixels = math.prod(errors.shape[k] for k in axes)

    def rows(x: Array) -> Array:
        x = jnp.moveaxis(x, axes, tuple(range(len(batch), x.ndim)))
        return _loops.replicate(x, keep=len(batch)).reshape(*batch, pixels)

    errors, labels = rows(errors), rows(labels)
    counts = ~(errors <= 0)  # NaN counts
    if where is not None:
        counts &= rows(where)
    # What does not count goes wrong last, and adds nothing there.
    keys = jax.lax.stop_gradient(jnp.where(counts, errors, -jnp.inf))
    order = jnp.argsort(keys, axis=-1, descending=True)
    wrong = jnp.take_along_axis(labels, order, -1)
    total = labels.sum(-1, keepdims=True, dtype=jnp.int32)
    left = (total - jnp.cumsum(wrong, -1, dtype=jnp.int32)).astype(errors.dtype)
    union = (total + jnp.cumsum(~wrong, -1, dtype=jnp.int32)).astype(errors.dtype)
    # A target missed: 1 / U. One found in vain: I / (U - 1) - I / U, which as a product
    # keeps its digits; without any target the first one makes all of the loss.
    vain = jnp.where(union == 1, 1, left / (union * jnp.maximum(union - 1, 1)))
    weights = jnp.where(wrong, 1 / jnp.maximum(union, 1), vain)
    # The weights go back to their pixels as the transpose of this: a second sort, for
    # the inverse order, would take as long as the first.
    errors = jnp.take_along_axis(jnp.where(counts, errors, 0), order, -1)
    return jnp.sum(errors * jax.lax.stop_gradient(weights), axis=-1)


def operands(
    function: str,
    predictions: Any,
    targets: Any,
    where: Any,
    first: str = "predictions",
    second: str = "targets",
) -> tuple[Array, Array, Array | None]:
    """Two masks of one shape, and which pixels count."""
    p = as_numbers(function, first, predictions)
    t = as_numbers(function, second, targets)
    if p.shape != t.shape:
        raise ValueError(
            f"jaxiou.{function}: `{first}` has shape {p.shape} and `{second}` "
            f"{t.shape}, wanted equal shapes; add the missing axis with "
            f"`{second}[..., None]`, or turn class ids into masks with "
            "`jax.nn.one_hot(labels, classes)`."
        )
    if where is None:
        return p, t, None
    return p, t, _checks.as_mask(function, "where", where, p.shape, unit="pixel")


def as_numbers(function: str, name: str, value: Any) -> Array:
    """An array of real numbers; True is 1."""
    array = jnp.asarray(value)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.int32)
    return _checks.as_real(function, name, array)


def _soft(mask: Array, where: Array | None) -> Array:
    """The pixels that count, in the arithmetic dtype, the others 0."""
    dtype = _checks.arithmetic_dtype(mask)
    if where is not None:
        mask = jnp.where(where, mask, jnp.zeros((), mask.dtype))
    mask = mask.astype(dtype)
    # Far outside of [0, 1]: products and their sums stay finite.
    return _numerics.saturate(mask, _numerics.largest(dtype) ** 0.5)


def axes_of(function: str, axis: Any, rank: int) -> tuple[int, ...]:
    """`axis` as a tuple without negative or repeated entries."""
    if axis is None:
        return tuple(range(rank))
    given = tuple(axis) if np.iterable(axis) else (axis,)
    axes = tuple(int(a) + rank if a < 0 else int(a) for a in given)
    if len(set(axes)) < len(axes) or not all(0 <= a < rank for a in axes):
        raise ValueError(
            f"jaxiou.{function}: `axis` is {axis!r}, wanted different axes of a mask "
            f"of {rank} axes, from {-rank} to {rank - 1}; None for all of them."
        )
    return axes
