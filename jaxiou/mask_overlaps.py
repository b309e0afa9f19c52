"""Overlaps and boxes of hard pixel masks; every count is exact."""

__all__ = ["mask_iou", "masks_to_boxes", "pairwise_mask_iou"]

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks, _loops, _numerics
from .masks import Axis, as_numbers, axes_of, operands


def mask_iou(
    masks1: _checks.ArrayLike,
    masks2: _checks.ArrayLike,
    *,
    axis: Axis,
    where: _checks.Mask | None = None,
) -> Float[Array, "..."]:
    """Intersection over union of hard masks, one by one.

    Args:
        masks1: bool, or integers of which 0 is background, of any shape.
        masks2: likewise, of the same shape.
        axis: axis or axes of one mask, None for all.
        where: bool, broadcasts to the shape of the masks; False leaves pixels out.

    Returns:
        The shape of the masks without `axis`, float32 in [0, 1]; counts are exact. Two
        empty masks have IoU 0, as two empty boxes have.

    Raises:
        ValueError: when the shapes differ, `where` does not broadcast to them, or
            `axis` names no axis of the masks.
        TypeError: on masks of floating numbers, or a `where` that is not boolean.

    Example:
        >>> import jaxiou
        >>> masks = [[1, 1, 0], [1, 0, 0]]
        >>> print(jaxiou.mask_iou(masks, [[0, 1, 1], [0, 0, 0]], axis=-1))
        [0.33333334 0.        ]
    """
    a, b = (
        _hard("mask_iou", name, masks)
        for name, masks in (("masks1", masks1), ("masks2", masks2))
    )
    a, b, mask = operands("mask_iou", a, b, where, "masks1", "masks2")
    axes = axes_of("mask_iou", axis, a.ndim)
    a, b = (x != 0 if mask is None else (x != 0) & mask for x in (a, b))
    common, either = (jnp.sum(x, axis=axes, dtype=jnp.int32) for x in (a & b, a | b))
    return _numerics.fraction(*(x.astype(jnp.float32) for x in (common, either)))


def pairwise_mask_iou(
    masks1: _checks.ArrayLike,
    masks2: _checks.ArrayLike,
    *,
    crowd: _checks.Mask | None = None,
) -> Float[Array, "*batch n m"]:
    """Intersection over union of every pair of hard masks, as one matrix product.

    Args:
        masks1: `(*batch, n, height, width)`, bool, or integers, 0 for background.
        masks2: `(*batch, m, height, width)`, likewise.
        crowd: bool, `(*batch, m)`, True for masks of a crowd, which are not charged for
            what they have beyond the mask of the other side, as COCO evaluates them:
            intersection over the area of the first.

    Returns:
        `(*batch, n, m)`, float32 in [0, 1]; counts of pixels are exact. Pairs of which
        the denominator is empty give 0.

    Raises:
        ValueError: when the sizes of the images differ, there is no axis of masks, or
            leading axes do not broadcast.
        TypeError: on masks of floating numbers, or a `crowd` that is not boolean.

    Example:
        >>> import jaxiou
        >>> masks = [[[1, 1, 0]], [[0, 1, 1]]]
        >>> print(jaxiou.pairwise_mask_iou(masks, [[[1, 1, 1]]], crowd=[True]))
        [[1.]
         [1.]]
    """
    name = "pairwise_mask_iou"
    a, b = _hard(name, "masks1", masks1), _hard(name, "masks2", masks2)
    if min(a.ndim, b.ndim) < 3 or a.shape[-2:] != b.shape[-2:]:
        raise ValueError(
            f"jaxiou.{name}: `masks1` has shape {a.shape} and `masks2` {b.shape}, "
            "wanted (*batch, n, height, width) and (*batch, m, height, width) with "
            "images of one size; pad the smaller ones with zeros."
        )
    _checks.broadcast_batch(name, ("masks1", "masks2"), a.shape[:-3], b.shape[:-3])
    # Pixels are summed over, and only one side may be spread over its masks.
    a = _loops.replicate(a, keep=a.ndim - 2)
    b = _loops.replicate(b, keep=b.ndim - 3)
    a, b = (x.reshape(*x.shape[:-2], math.prod(x.shape[-2:])) for x in (a, b))
    # Sums of zeros and ones are exact in float32 up to 2²⁴ pixels, and fast.
    dtype = jnp.float32 if a.shape[-1] <= 1 << 24 else jnp.int32
    common = jnp.matmul(
        a.astype(dtype),
        jnp.swapaxes(b, -1, -2).astype(dtype),
        precision=jax.lax.Precision.HIGHEST,
    ).astype(jnp.int32)
    area1, area2 = (jnp.sum(x, axis=-1, dtype=jnp.int32) for x in (a, b))
    area1 = jnp.broadcast_to(area1[..., :, None], common.shape)
    whole = area1 + area2[..., None, :] - common
    if crowd is not None:
        shape = (*common.shape[:-2], common.shape[-1])
        crowd = _checks.as_mask(name, "crowd", crowd, shape, unit="mask of `masks2`")
        crowd = _loops.replicate(crowd, keep=crowd.ndim - 1)
        whole = jnp.where(crowd[..., None, :], area1, whole)
    return _numerics.fraction(*(x.astype(jnp.float32) for x in (common, whole)))


def masks_to_boxes(masks: _checks.ArrayLike) -> Float[Array, "*batch 4"]:
    """The smallest box, xyxy, round the pixels of each hard mask.

    Args:
        masks: `(*batch, height, width)`, bool, or integers of which 0 is background.

    Returns:
        `(*batch, 4)` float32: the outer edges of the pixels, so that a mask of one
        pixel has a box of area 1. An empty mask has the box 0, 0, 0, 0.

    Raises:
        ValueError: on arrays without height and width.
        TypeError: on masks of floating numbers.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.masks_to_boxes([[0, 1, 1, 0], [0, 1, 0, 0]]))
        [1. 0. 3. 2.]

    Reference:
        torchvision's `masks_to_boxes` gives the indices of the last pixels instead: its
        x2 and y2 are less by one.
    """
    pixels = _hard("masks_to_boxes", "masks", masks)
    if pixels.ndim < 2:
        raise ValueError(
            f"jaxiou.masks_to_boxes: `masks` has shape {pixels.shape}, wanted "
            "(*batch, height, width)."
        )

    def ends(axis: int) -> tuple[Array, Array]:
        line = pixels.any(axis)
        size = line.shape[-1]
        place = jnp.broadcast_to(jnp.arange(size), line.shape)
        first = jnp.min(place, axis=-1, where=line, initial=size)
        last = jnp.max(place, axis=-1, where=line, initial=-1)
        return first, last + 1

    (x1, x2), (y1, y2) = ends(-2), ends(-1)
    boxes = jnp.stack([x1, y1, x2, y2], axis=-1)
    empty = ~pixels.any((-2, -1))
    return jnp.where(empty[..., None], 0, boxes).astype(jnp.float32)


def _hard(function: str, name: str, value: Any) -> Array:
    """A mask as booleans; a threshold is the caller's choice."""
    array = as_numbers(function, name, value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"jaxiou.{function}: `{name}` has dtype {array.dtype}, wanted bool or "
            f"integers; threshold first, as in `{name} > 0.5`."
        )
    return array != 0
