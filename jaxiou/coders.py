"""Coding of boxes that turn as offsets, and of distances as distributions."""

__all__ = ["decode_dfl", "decode_rotated", "encode_dfl", "encode_rotated"]

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks, _measure, _numerics
from .anchors import (
    Weights,
    absolute,
    bounds_of,
    divided,
    pair_of,
    relative,
    weights_of,
)
from .boxes import pack, unpack

_ONES = (1.0, 1.0, 1.0, 1.0, 1.0)


def encode_rotated(
    boxes: _checks.Boxes,
    anchors: _checks.Boxes,
    *,
    weights: Weights = _ONES,
    exchange_sides: bool = False,
) -> Float[Array, "*batch 5"]:
    """Boxes that turn as offsets from such anchors: `(dx, dy, dw, dh, da)`.

    With (x, y) the centre of the box as seen from that of the anchor along the anchor's
    sides, dx = wx x / wₐ, dw = ww log(w / wₐ), dy and dh likewise, and da = wa times
    the angle between the two.

    Args:
        boxes: `(*batch, 5)`, (cx, cy, w, h, angle), any unit, radians.
        anchors: `(*batch, 5)`, the same; leading axes broadcast. Those of axis-aligned
            boxes have angle 0.
        weights: `(wx, wy, ww, wh, wa)`, positive numbers that multiply the offsets.
        exchange_sides: whether a box is turned by a quarter, with its sides exchanged,
            where that is nearer to the anchor's angle.

    Returns:
        `(*batch, 5)`, 0 where the box is the anchor; the angle in [-π/2, π/2), since a
        box is the same after half a turn, or in [-π/4, π/4) with `exchange_sides`. In
        the floating dtype of the inputs (float32 for integers).

    At the edge:
        As `encode`: empty boxes have a finite logarithm, an anchor without a side gives
        offset 0 along it. In half precision values and gradients saturate, and forward
        mode is not available.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast, or weights that
            are not five positive numbers.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.encode_rotated([3.0, 2.0, 4.0, 4.0, 0.5], [2, 2, 4, 2, 0.0]))
        [0.25      0.        0.        0.6931472 0.5      ]

    Reference:
        J. Ding, N. Xue, Y. Long, G.-S. Xia, Q. Lu, "Learning RoI Transformer for
        Detecting Oriented Objects in Aerial Images", 2018, arXiv:1812.00155, with the
        angle modulo 2π. mmrotate's `DeltaXYWHTRBBoxCoder` has these offsets with
        `proj_xy=True`, and exchanges sides with `edge_swap=True`.
    """
    name = "encode_rotated"
    weights = weights_of(name, weights, 5)
    operands = ("boxes", boxes, 5), ("anchors", anchors, 5)
    array1, array2, dtype = pair_of(name, *operands)
    (x, y, w, h, angle), (ax, ay, aw, ah, anchor_angle) = unpack(array1), unpack(array2)
    w, h, aw, ah = (_numerics.nonnegative(side) for side in (w, h, aw, ah))
    step = math.pi / 2 if exchange_sides else math.pi
    turns = jnp.floor((angle - anchor_angle) / step + 0.5)
    turned = (angle - anchor_angle) - turns * step
    if exchange_sides:
        odd = turns % 2 == 1
        w, h = jnp.where(odd, h, w), jnp.where(odd, w, h)
    cos, sin = jnp.cos(anchor_angle), jnp.sin(anchor_angle)
    along = (x - ax) * cos + (y - ay) * sin
    across = (y - ay) * cos - (x - ax) * sin
    (dx, dw), (dy, dh) = relative(along, w, aw), relative(across, h, ah)
    offsets = zip(weights, (dx, dy, dw, dh, turned), strict=True)
    return pack([weight * offset for weight, offset in offsets], dtype)


def decode_rotated(
    deltas: _checks.Boxes,
    anchors: _checks.Boxes,
    *,
    weights: Weights = _ONES,
    max_log_scale: float = math.log(1000 / 16),
    min_log_scale: float = -math.inf,
    max_shift: float = math.inf,
) -> Float[Array, "*batch 5"]:
    """Boxes that turn from their offsets: the inverse of `encode_rotated`.

    Args:
        deltas: `(*batch, 5)`, `(dx, dy, dw, dh, da)` as `encode_rotated` gives them.
        anchors: `(*batch, 5)`, (cx, cy, w, h, angle), any unit, radians; leading axes
            broadcast.
        weights: the positive numbers given to `encode_rotated`.
        max_log_scale: bound on the logarithm of w / wₐ, so that an untrained head does
            not overflow; no gradient passes beyond it.
        min_log_scale: lower bound on the same.
        max_shift: bound on the shift along each side of the anchor, in its unit.

    Returns:
        `(*batch, 5)` in the unit of the anchors, sides not negative; the angle is that
        of the anchor plus da / wa, not reduced. In the floating dtype of the inputs
        (float32 for integers).

    At the edge:
        As `decode`: an anchor without a side gives a box without it.

    Raises:
        ValueError: on shapes that are not `(..., 5)` or do not broadcast, weights that
            are not five positive numbers, or bounds that are NaN or leave nothing.
        TypeError: on boolean or complex inputs.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.decode_rotated([0.25, 0.5, 0, 0, 0.5], [2.0, 2.0, 4, 2, 0]))
        [3.  3.  4.  2.  0.5]

    Reference:
        J. Ding, N. Xue, Y. Long, G.-S. Xia, Q. Lu, "Learning RoI Transformer for
        Detecting Oriented Objects in Aerial Images", 2018, arXiv:1812.00155. mmrotate
        reduces the angle to its `angle_version`; `convert_angle` does that here.
    """
    name = "decode_rotated"
    weights = weights_of(name, weights, 5)
    bounds = bounds_of(name, max_log_scale, min_log_scale, max_shift)
    operands = ("deltas", deltas, 5), ("anchors", anchors, 5)
    array1, array2, dtype = pair_of(name, *operands)
    dx, dy, dw, dh, da = divided(unpack(array1), weights)
    x, y, w, h, angle = unpack(array2)
    along, w = absolute(dx, dw, _numerics.nonnegative(w), bounds)
    across, h = absolute(dy, dh, _numerics.nonnegative(h), bounds)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    centre = x + along * cos - across * sin, y + along * sin + across * cos
    return pack([*centre, w, h, angle + da], dtype)


def encode_dfl(
    distances: _checks.ArrayLike, *, bins: int
) -> Float[Array, "*batch bins"]:
    """Distances as distributions over whole numbers: what a DFL head is to learn.

    All weight lies on the two whole numbers next to a distance, in proportion to how
    near they are, so that the expectation is the distance.

    Args:
        distances: `(*batch,)`, in cells; those of `encode_ltrb` divided by the stride.
        bins: number of bins, 0 to bins - 1 cells.

    Returns:
        `(*batch, bins)`, each row of sum 1, in the floating dtype of the distances
        (float32 for integers). The cross entropy with it is the distribution focal
        loss.

    At the edge:
        Distances are clipped to [0, bins - 1]. NaN gives NaN.

    Raises:
        ValueError: where `bins` is not a static integer of at least 1.
        TypeError: on boolean or complex distances.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.encode_dfl([1.25, 7.0], bins=4))
        [[0.   0.75 0.25 0.  ]
         [0.   0.   0.   1.  ]]

    Reference:
        X. Li et al., "Generalized Focal Loss: Learning Qualified and Distributed
        Bounding Boxes for Dense Object Detection", 2020, arXiv:2006.04388. ultralytics
        clips to bins - 1.01.
    """
    if not isinstance(bins, int | np.integer) or bins < 1:
        raise ValueError(
            f"jaxiou.encode_dfl: `bins` is {bins!r}, wanted an integer of at least 1: "
            "it is part of the result's shape, so it cannot be traced."
        )
    array = _checks.as_real("encode_dfl", "distances", distances)
    distance = jnp.clip(array.astype(_checks.arithmetic_dtype(array)), 0, bins - 1)
    place = jnp.arange(bins, dtype=distance.dtype).reshape(*(1,) * array.ndim, bins)
    weights = jnp.maximum(1 - jnp.abs(distance[..., None] - place), 0)
    return weights.astype(_checks.result_dtype(array))


def decode_dfl(logits: _checks.ArrayLike) -> Float[Array, "*batch"]:
    """The expectation of a distribution over bins: the inverse of `encode_dfl`.

    Σ k softmax(logits)[k] over k = 0, 1, ...

    Args:
        logits: `(*batch, bins)`; for the four sides of a box `(*batch, 4, bins)`.

    Returns:
        `(*batch,)`, in cells from 0 to bins - 1; times the stride they are what
        `decode_ltrb` takes. In the floating dtype of the logits (float32 for integers).

    At the edge:
        Finite, with a finite gradient, for every finite logit.

    Raises:
        ValueError: on logits without bins.
        TypeError: on boolean or complex logits.

    Example:
        >>> import jaxiou
        >>> sides = jaxiou.decode_dfl([[0.0, 0.0, 0.0], [-9.0, 9.0, 9.0]])
        >>> print(sides)
        [1.  1.5]

    Reference:
        X. Li et al., "Generalized Focal Loss: Learning Qualified and Distributed
        Bounding Boxes for Dense Object Detection", 2020, arXiv:2006.04388. The
        `Integral` of mmdetection and the `DFL` of ultralytics.
    """
    array = _checks.as_real("decode_dfl", "logits", logits)
    if array.ndim < 1 or array.shape[-1] < 1:
        raise ValueError(
            f"jaxiou.decode_dfl: `logits` has shape {array.shape}, wanted "
            "(*batch, bins); reshape the output of a head with "
            "`logits.reshape(-1, 4, bins)`."
        )
    dtype = _checks.arithmetic_dtype(array)
    # Differences beyond e^100 are none to a softmax, and infinite ones none either.
    logit = _numerics.saturate(array.astype(dtype), _numerics.largest(dtype))
    place = jnp.arange(array.shape[-1], dtype=dtype)
    place = place.reshape(*(1,) * (array.ndim - 1), -1)
    expected = (jax.nn.softmax(logit, axis=-1) * place).sum(axis=-1)
    return _measure.narrow(expected, _checks.result_dtype(array))
