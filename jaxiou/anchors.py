"""Anchor grids, and the coding of boxes as offsets from anchors or points.

A detector head predicts small numbers around zero; these functions turn boxes into such
numbers (`encode`) and back (`decode`). Losses and matching take boxes, not offsets.
"""

__all__ = ["anchor_grid", "decode", "decode_ltrb", "encode", "encode_ltrb"]

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks, _measure, _numerics
from ._measure import Planes
from .boxes import pack, unpack

SMALLEST_RATIO = 1e-6
"""`encode` continues the logarithm along its tangent below this ratio of sides."""

Weights = tuple[float, ...]


def anchor_grid(
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[float],
    *,
    sizes: Sequence[float],
    aspect_ratios: Sequence[float] = (1.0,),
    scales: Sequence[float] = (1.0,),
) -> Float[Array, "n 4"]:
    """The anchors of a feature pyramid: boxes of fixed sizes around every cell.

    The cell in row i and column j of a level is centred on
    ((j + 0.5) stride, (i + 0.5) stride). An anchor of aspect ratio r = height / width
    has height size · scale · √r and width size · scale / √r: its area does not depend
    on r.

    Args:
        feature_sizes: `(height, width)` of each level, in cells.
        strides: distance of neighbouring cells in pixels, one number per level.
        sizes: side in pixels of the anchor of ratio 1 and scale 1, one per level.
        aspect_ratios: height / width, positive.
        scales: factors of the size, positive.

    Returns:
        `(n, 4)`, xyxy in pixels, float32, with n the sum over levels of
        height · width · len(aspect_ratios) · len(scales). The order is level by level,
        cells row by row, and in a cell ratio by ratio, each with all scales: that of a
        head whose output `(height, width, ratios · scales · 4)` is reshaped to
        `(-1, 4)`.

    At the edge:
        Anchors of border cells reach over the image; `clip` cuts them.

    Raises:
        ValueError: when the three sequences differ in length, or a number is not
            positive.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.anchor_grid([(1, 2)], [8], sizes=[6.0], aspect_ratios=[2.25]))
        [[ 2.  -0.5  6.   8.5]
         [10.  -0.5 14.   8.5]]

    Reference:
        S. Ren, K. He, R. Girshick, J. Sun, "Faster R-CNN", 2015, arXiv:1506.01497.
        torchvision rounds the corners to whole pixels and centres cells on (j stride,
        i stride); detectron2 has that centre by default (`offset=0.0`).
    """
    levels = _levels(feature_sizes, strides, sizes)
    ratios = _positive("anchor_grid", "aspect_ratios", aspect_ratios)
    factors = _positive("anchor_grid", "scales", scales)
    heights = (np.sqrt(ratios)[:, None] * factors).reshape(-1)
    widths = (factors / np.sqrt(ratios)[:, None]).reshape(-1)
    shapes = np.stack([-widths, -heights, widths, heights], axis=-1) / 2
    grids = []
    for (rows, columns), stride, size in levels:
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        centres = (np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4) + 0.5) * stride
        grids.append((centres + size * shapes).reshape(-1, 4))
    return jnp.asarray(np.concatenate(grids).astype(np.float32))


def encode(
    boxes: _checks.Boxes,
    anchors: _checks.Boxes,
    *,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*batch 4"]:
    """Boxes as offsets from anchors: `(dx, dy, dw, dh)`.

    dx = wx (cx - cxₐ) / wₐ and dw = ww log(w / wₐ), with (cx, cy, w, h) the centre and
    sides of the box and (cxₐ, cyₐ, wₐ, hₐ) those of the anchor; dy and dh likewise.

    Args:
        boxes: `(*batch, 4)`, xyxy, any unit.
        anchors: `(*batch, 4)`, xyxy, the same unit; leading axes broadcast.
        weights: `(wx, wy, ww, wh)`, positive numbers that multiply the offsets.

    Returns:
        `(*batch, 4)`, without unit; 0 where the box is the anchor. In the boxes'
        floating dtype (float32 for integers).

    At the edge:
        Below w / wₐ = 1e-6 the logarithm continues along its tangent, so an empty box
        gives dw = -14.8 ww with a finite gradient, and so does an inverted one, without
        gradient. An anchor without width gives dx = dw = 0 with zero gradient. In half
        precision values and gradients saturate, and forward mode is not available.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast, or weights that
            are not four positive numbers.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.encode([1.0, 1.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]))
        [ 0.125      0.75      -0.2876821  0.4054651]

    Reference:
        R. Girshick, J. Donahue, T. Darrell, J. Malik, "Rich feature hierarchies for
        accurate object detection and semantic segmentation", 2014, arXiv:1311.2524.
        torchvision's `BoxCoder` has these weights; mmdetection's
        `DeltaXYWHBBoxCoder` divides by `target_stds` = 1 / weights. Both give infinity
        for empty boxes.
    """
    weights = weights_of("encode", weights)
    operands = ("boxes", boxes, 4), ("anchors", anchors, 4)
    array1, array2, dtype = pair_of("encode", *operands)
    box, anchor = unpack(array1), unpack(array2)
    columns = []
    for k in (0, 1):
        side = _numerics.nonnegative(box[k + 2] - box[k])
        unit = _numerics.nonnegative(anchor[k + 2] - anchor[k])
        # Differences of like corners first: exact where the two are near each other.
        shift = ((box[k] - anchor[k]) + (box[k + 2] - anchor[k + 2])) / 2
        columns.append(relative(shift, side, unit))
    (dx, dw), (dy, dh) = columns
    offsets = [w * d for w, d in zip(weights, (dx, dy, dw, dh), strict=True)]
    return pack(offsets, dtype)


def decode(
    deltas: _checks.Boxes,
    anchors: _checks.Boxes,
    *,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
    max_log_scale: float = math.log(1000 / 16),
    min_log_scale: float = -math.inf,
    max_shift: float = math.inf,
) -> Float[Array, "*batch 4"]:
    """Boxes from their offsets: the inverse of `encode`.

    cx = cxₐ + wₐ dx / wx and w = wₐ exp(dw / ww), with the shift and the exponent
    within their bounds; cy and h likewise.

    Args:
        deltas: `(*batch, 4)`, `(dx, dy, dw, dh)` as `encode` gives them.
        anchors: `(*batch, 4)`, xyxy, any unit; leading axes broadcast.
        weights: `(wx, wy, ww, wh)`, the positive numbers given to `encode`.
        max_log_scale: bound on the logarithm of w / wₐ, so that an untrained head does
            not overflow; no gradient passes beyond it. `math.inf` for none.
        min_log_scale: lower bound on the same.
        max_shift: bound on |cx - cxₐ| and |cy - cyₐ|, in the unit of the anchors.

    Returns:
        `(*batch, 4)`, xyxy in the unit of the anchors, never inverted; the anchor where
        the offsets are 0. In the floating dtype of the inputs (float32 for integers).

    At the edge:
        An anchor without width gives a box without width at its centre, an inverted one
        too. Values saturate where they would overflow. In half precision gradients
        saturate as well, and forward mode is not available. Boxes may reach over the
        image; `clip` cuts them.

    Raises:
        ValueError: on shapes that are not `(..., 4)` or do not broadcast, weights that
            are not four positive numbers, or bounds that are NaN or leave nothing.
        TypeError: on boolean or complex inputs.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.decode([0.125, 0.75, 0.0, 0.0], [0.0, 0.0, 4.0, 2.0]))
        [0.5 1.5 4.5 3.5]

    Reference:
        R. Girshick, J. Donahue, T. Darrell, J. Malik, "Rich feature hierarchies for
        accurate object detection and semantic segmentation", 2014, arXiv:1311.2524; the
        upper bound is torchvision's. mmdetection's `DeltaXYWHBBoxCoder` clamps dw and
        dh to ±log(1 / wh_ratio_clip), or with `add_ctr_clamp` from above and the shift
        to `ctr_clamp`.
    """
    weights = weights_of("decode", weights)
    bounds = bounds_of("decode", max_log_scale, min_log_scale, max_shift)
    operands = ("deltas", deltas, 4), ("anchors", anchors, 4)
    array1, array2, dtype = pair_of("decode", *operands)
    anchor, delta = unpack(array2), divided(unpack(array1), weights)
    low, high = [], []
    for k in (0, 1):
        unit = _numerics.nonnegative(anchor[k + 2] - anchor[k])
        shift, side = absolute(delta[k], delta[k + 2], unit, bounds)
        centre = (anchor[k] + anchor[k + 2]) / 2 + shift
        low.append(centre - side / 2)
        high.append(centre + side / 2)
    return pack(low + high, dtype)


def encode_ltrb(
    boxes: _checks.Boxes, points: _checks.ArrayLike
) -> Float[Array, "*batch 4"]:
    """Boxes as distances of their sides from a point: `(left, top, right, bottom)`.

    left = px - x1, top = py - y1, right = x2 - px, bottom = y2 - py.

    Args:
        boxes: `(*batch, 4)`, xyxy, any unit.
        points: `(*batch, 2)`, `(x, y)` in the same unit; leading axes broadcast.

    Returns:
        `(*batch, 4)` in that unit, all positive where the point lies inside the box. In
        the floating dtype of the inputs (float32 for integers). Divide by the stride
        of a level where a head predicts in cells.

    At the edge:
        A point outside of the box gives negative distances, one on a side 0; nothing is
        clamped. In half precision values saturate, and forward mode is not available.

    Raises:
        ValueError: on shapes that are not boxes and points or do not broadcast.
        TypeError: on boolean or complex inputs.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.encode_ltrb([1.0, 1.0, 4.0, 6.0], [2.0, 3.0]))
        [1. 2. 2. 3.]

    Reference:
        Z. Tian, C. Shen, H. Chen, T. He, "FCOS: Fully Convolutional One-Stage Object
        Detection", 2019, arXiv:1904.01355. mmdetection's `DistancePointBBoxCoder`
        clamps to [0, max_dis - eps] where `max_dis` is given.
    """
    operands = ("boxes", boxes, 4), ("points", points, 2)
    array1, array2, dtype = pair_of("encode_ltrb", *operands)
    (x1, y1, x2, y2), (x, y) = unpack(array1), unpack(array2)
    distances = [x - x1, y - y1, x2 - x, y2 - y]
    return pack(distances, dtype)


def decode_ltrb(
    distances: _checks.Boxes, points: _checks.ArrayLike
) -> Float[Array, "*batch 4"]:
    """Boxes from the distances of their sides: the inverse of `encode_ltrb`.

    x1 = px - left, y1 = py - top, x2 = px + right, y2 = py + bottom.

    Args:
        distances: `(*batch, 4)`, `(left, top, right, bottom)` in any unit.
        points: `(*batch, 2)`, `(x, y)` in the same unit; leading axes broadcast.

    Returns:
        `(*batch, 4)`, xyxy in that unit. In the floating dtype of the inputs (float32
        for integers).

    At the edge:
        Distances of 0 give the point; where left + right < 0 the box is inverted, which
        is empty. A head usually predicts them through `exp`, `relu` or `softplus`. In
        half precision values saturate, and forward mode is not available.

    Raises:
        ValueError: on shapes that are not `(..., 4)` and `(..., 2)`, or do not
            broadcast.
        TypeError: on boolean or complex inputs.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.decode_ltrb([1.0, 2.0, 2.0, 3.0], [2.0, 3.0]))
        [1. 1. 4. 6.]

    Reference:
        Z. Tian, C. Shen, H. Chen, T. He, "FCOS: Fully Convolutional One-Stage Object
        Detection", 2019, arXiv:1904.01355. The `distance2bbox` of mmdetection, without
        its clipping to the image.
    """
    operands = ("distances", distances, 4), ("points", points, 2)
    array1, array2, dtype = pair_of("decode_ltrb", *operands)
    (left, top, right, bottom), (x, y) = unpack(array1), unpack(array2)
    corners = [x - left, y - top, x + right, y + bottom]
    return pack(corners, dtype)


class Bounds(NamedTuple):
    """Limits of what is decoded."""

    highest: float
    lowest: float
    reach: float


def bounds_of(
    function: str, max_log_scale: float, min_log_scale: float, max_shift: float
) -> Bounds:
    """The three checked; NaN compares with nothing."""
    if not (min_log_scale <= max_log_scale and max_shift >= 0):
        raise ValueError(
            f"jaxiou.{function}: `min_log_scale` is {min_log_scale}, `max_log_scale` "
            f"{max_log_scale} and `max_shift` {max_shift}, wanted numbers with "
            "min_log_scale <= max_log_scale and max_shift >= 0; `math.inf` turns a "
            "bound off."
        )
    return Bounds(max_log_scale, min_log_scale, max_shift)


def relative(shift: Array, side: Array, unit: Array) -> tuple[Array, Array]:
    """A shift and a side in units of the anchor's: a quotient, and a logarithm."""
    offset, ratio = _quotient(shift, unit), _quotient(side, unit)
    empty = unit <= _shortest(unit.dtype)
    return offset, jnp.where(empty, 0, _continued_log(ratio))


def absolute(
    offset: Array, log_scale: Array, unit: Array, bounds: Bounds
) -> tuple[Array, Array]:
    """The inverse of `relative`, within bounds.

    Selections in place of minima: at a bound itself the gradient is whole.
    """
    shift = offset * unit
    if math.isfinite(bounds.reach):
        far = jnp.abs(shift) > bounds.reach
        shift = jnp.where(far, jnp.sign(shift) * bounds.reach, shift)
    highest = min(bounds.highest, math.log(_numerics.largest(unit.dtype)))
    log_scale = jnp.where(log_scale > highest, highest, log_scale)
    log_scale = jnp.where(log_scale < bounds.lowest, bounds.lowest, log_scale)
    return shift, unit * jnp.exp(log_scale)


def divided(deltas: Planes, weights: Weights) -> list[Array]:
    """Offsets without their weights, saturated."""
    limit = _numerics.largest(deltas[0].dtype)
    pairs = zip(deltas, weights, strict=True)
    return [_numerics.saturate(delta / weight, limit) for delta, weight in pairs]


def _shortest(dtype: jnp.dtype) -> float:
    """An anchor's side counts as zero below this: 1e-19 in float32."""
    return float(jnp.finfo(dtype).tiny) ** 0.5


def _quotient(part: Array, side: Array) -> Array:
    """part / side, saturated so that derivatives stay finite; 0 for an empty side."""
    limit = _numerics.largest(side.dtype)
    empty = side <= _shortest(side.dtype)
    far = ~empty & (jnp.abs(part) > limit * side)
    # Both operands are replaced before the division: its derivative sees no overflow.
    inner = jnp.where(empty | far, 0, part)
    quotient = _numerics.divide(inner, jnp.where(empty | far, 1, side))
    return jnp.where(far, jnp.sign(part) * limit, quotient)


def _continued_log(ratio: Array) -> Array:
    """log(ratio), along its tangent below `SMALLEST_RATIO`."""
    above = jnp.log(jnp.maximum(ratio, SMALLEST_RATIO))
    return above + jnp.minimum(ratio - SMALLEST_RATIO, 0) / SMALLEST_RATIO


def pair_of(
    function: str, first: tuple[str, Any, int], second: tuple[str, Any, int]
) -> tuple[Array, Array, jnp.dtype]:
    """Two checked arrays of vectors, of equal rank, and the dtype of the result."""
    arrays = [_vectors(function, *operand) for operand in (first, second)]
    shapes = [array.shape[:-1] for array in arrays]
    _checks.broadcast_batch(function, (first[0], second[0]), *shapes)
    return *_measure.promote(*arrays), _checks.result_dtype(*arrays)


def _vectors(function: str, name: str, value: Any, size: int) -> Array:
    layouts = {
        "deltas": "(dx, dy, dw, dh)" if size == 4 else "(dx, dy, dw, dh, da)",
        "distances": "(left, top, right, bottom)",
        "points": "(x, y)",
    }
    if name not in layouts:
        return _checks.as_boxes(function, name, value, coordinates=size)
    array = _checks.as_real(function, name, value)
    if array.shape == (0,):
        array = array.reshape(0, size)
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(
            f"jaxiou.{function}: `{name}` has shape {array.shape}, wanted "
            f"(..., {size}) {layouts[name]}; they go on the last axis, reshape the "
            f"output of a head with `{name}.reshape(-1, {size})`."
        )
    return array


def weights_of(function: str, weights: Any, size: int = 4) -> Weights:
    if any(_checks.is_traced(w) for w in (weights, *_items(weights))):
        raise TypeError(
            f"jaxiou.{function}: `weights` is traced, wanted Python numbers: they "
            "are part of the compiled program; pass them outside of `jit`'s arguments."
        )
    values = np.asarray(weights, np.float64)
    if values.shape != (size,) or not np.all(np.isfinite(values) & (values > 0)):
        names = "four positive numbers (wx, wy, ww, wh)"
        names = names if size == 4 else "five positive numbers (wx, wy, ww, wh, wa)"
        raise ValueError(
            f"jaxiou.{function}: `weights` is {weights!r}, wanted {names}; for "
            "mmdetection's `target_stds` pass their inverses."
        )
    return tuple(values.tolist())


def _items(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else ()


def _positive(function: str, name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0 or not np.all(array > 0):
        raise ValueError(
            f"jaxiou.{function}: `{name}` is {values!r}, wanted a sequence of positive "
            f"numbers, as in `{name}=(0.5, 1.0, 2.0)`."
        )
    return array


def _levels(feature_sizes: Any, strides: Any, sizes: Any) -> list[Any]:
    """Checked `((rows, columns), stride, size)` of each level."""
    function = "anchor_grid"
    try:
        grid = np.asarray(feature_sizes)
    except ValueError:  # A ragged list.
        grid = np.zeros(0)
    integers = np.issubdtype(grid.dtype, np.integer)
    if not integers or grid.ndim != 2 or grid.shape[1] != 2 or grid.min() < 1:
        raise ValueError(
            f"jaxiou.{function}: `feature_sizes` is {feature_sizes!r}, wanted one "
            "(height, width) of positive integers per level; of a feature map `(batch, "
            "height, width, channels)` pass `features.shape[1:3]`."
        )
    strides = _positive(function, "strides", strides)
    sizes = _positive(function, "sizes", sizes)
    if not len(grid) == len(strides) == len(sizes):
        raise ValueError(
            f"jaxiou.{function}: `feature_sizes`, `strides` and `sizes` have lengths "
            f"{len(grid)}, {len(strides)} and {len(sizes)}, wanted one entry per level "
            "in each; several sizes in one cell are `scales`."
        )
    return list(zip(grid.tolist(), strides, sizes, strict=True))
