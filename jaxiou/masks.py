"""Losses of pixel masks: arrays of one number per pixel, of any rank.

`axis` names the axes of one mask; the others are a batch, and nothing is reduced over
them.
"""

__all__ = ["jaccard_loss"]

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks, _numerics


def jaccard_loss(
    predictions: _checks.ArrayLike,
    targets: _checks.ArrayLike,
    *,
    axis: int | Sequence[int] | None,
    where: _checks.Mask | None = None,
) -> Float[Array, "..."]:
    """1 - soft Jaccard index of two masks.

    L = 1 - Σtp / (Σt + Σp - Σtp), the sums over the pixels of one mask: on hard labels
    1 - IoU of the two masks.

    Args:
        predictions: probabilities in [0, 1] of any shape, `(batch, height, width,
            classes)` for example; sigmoid or softmax comes first.
        targets: labels of the same shape, in [0, 1], or bool, or integers 0 and 1.
        axis: axis or axes of one mask, None for all: `(1, 2)` gives a loss per image
            and class there, `(1, 2, 3)` one per image.
        where: bool, broadcasts to the shape of the masks; False for pixels to leave
            out ("void", padding).

    Returns:
        The shape of the masks without `axis`, in [0, 1]: 0 for equal hard labels, 1 for
        disjoint ones. In the floating dtype of the inputs (float32 where none is), but
        summed in float32 at least: 512 × 512 pixels overflow half precision.

    At the edge:
        Two empty masks, 0/0, give loss 0 with gradient 0, and so does a mask without
        any pixel left. Otherwise an empty target gives 1 whatever is predicted, with
        gradient 0. Equal *soft* masks do not give 0. Pixels left out have gradient 0,
        also where they hold NaN.

    Raises:
        ValueError: when the shapes differ, `where` does not broadcast to them, or
            `axis` names no axis of the masks.
        TypeError: on complex masks, or a `where` that is not boolean.

    Example:
        >>> import jaxiou
        >>> predictions = [[0.8, 0.4, 0.0], [0.6, 0.2, 0.0]]
        >>> targets = [[1, 1, 0], [0, 0, 0]]
        >>> print(jaxiou.jaccard_loss(predictions, targets, axis=None))
        0.57142854

    Reference:
        M. A. Rahman, Y. Wang, "Optimizing Intersection-Over-Union in Deep Neural
        Networks for Image Segmentation", 2016. The widely copied TensorFlow code is
        `iou_loss(y_true, y_pred)`: targets come *first* there, with `axis=(1, 2, 3)` of
        a 4-D batch. Other libraries add a smoothing constant to both sides of the
        fraction, which bends small masks.
    """
    p, t, mask = _operands("jaccard_loss", predictions, targets, where)
    dtype = _checks.result_dtype(p, t)
    p, t = _soft(p, mask), _soft(t, mask)
    axes = _axes("jaccard_loss", axis, p.ndim)
    union = jnp.sum(t + p - t * p, axis=axes)
    # 1 - I / U as (U - I) / U: 0/0 is then no loss, and equal labels give exactly 0.
    missed = jnp.sum(t + p - 2 * t * p, axis=axes)
    return _numerics.fraction(missed, union).astype(dtype)


def _operands(
    function: str, predictions: Any, targets: Any, where: Any
) -> tuple[Array, Array, Array | None]:
    """Two masks of one shape, and which pixels count."""
    p = _as_mask(function, "predictions", predictions)
    t = _as_mask(function, "targets", targets)
    if p.shape != t.shape:
        raise ValueError(
            f"jaxiou.{function}: `predictions` has shape {p.shape} and `targets` "
            f"{t.shape}, wanted equal shapes; add the missing axis with "
            "`targets[..., None]`, or turn class ids into masks with "
            "`jax.nn.one_hot(labels, classes)`."
        )
    if where is None:
        return p, t, None
    return p, t, _checks.as_mask(function, "where", where, p.shape, unit="pixel")


def _as_mask(function: str, name: str, value: Any) -> Array:
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


def _axes(function: str, axis: Any, rank: int) -> tuple[int, ...]:
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
