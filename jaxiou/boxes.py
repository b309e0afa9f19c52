"""What a box is: formats, area, clipping, validity.

A box is `(x1, y1, x2, y2)`, xyxy: continuous coordinates in any unit, x to the right, y
down, no "+1". A box with x2 < x1 or y2 < y1 is inverted, which is empty: its area is 0.
"""

__all__ = ["area", "check_boxes", "clip", "convert", "is_valid"]

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from . import _checks, _measure, _numerics
from ._measure import Planes

_TO_XYXY: dict[str, Callable[..., Planes]] = {
    "xyxy": lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    "xywh": lambda x, y, w, h: (x, y, x + w, y + h),
    "cxcywh": lambda x, y, w, h: (x - w / 2, y - h / 2, x + w / 2, y + h / 2),
    "yxyx": lambda y1, x1, y2, x2: (x1, y1, x2, y2),
}
_FROM_XYXY: dict[str, Callable[..., Planes]] = {
    "xyxy": lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    "xywh": lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1),
    "cxcywh": lambda x1, y1, x2, y2: ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
    "yxyx": lambda x1, y1, x2, y2: (y1, x1, y2, x2),
}


def convert(boxes: _checks.Boxes, source: str, target: str) -> Float[Array, "*batch 4"]:
    """Rewrites boxes from one format in another.

    "xyxy" `(x1, y1, x2, y2)` corners; "xywh" `(x1, y1, w, h)` first corner and sides
    (COCO); "cxcywh" `(cx, cy, w, h)` centre and sides (YOLO, DETR); "yxyx"
    `(y1, x1, y2, x2)` corners, y first (TensorFlow).

    Args:
        boxes: `(*batch, 4)` in the source format, any unit.
        source: the format they have.
        target: the format wanted.

    Returns:
        `(*batch, 4)` in the target format and the same unit; floating dtypes stay,
        integers become float32 (exact up to 2²⁴). Equal formats change no value.

    At the edge:
        An inverted box has negative sides and stays the same box there and back. Half
        precision is computed in float32 and rounded once.

    Raises:
        ValueError: on shapes that are not boxes, or an unknown format.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.convert([1.0, 2.0, 4.0, 8.0], "xyxy", "cxcywh"))
        [2.5 5.  3.  6. ]

    Reference:
        torchvision's `box_convert`, which has no y-first format.
    """
    for name, value in (("source", source), ("target", target)):
        if value not in _TO_XYXY:
            known = ", ".join(repr(key) for key in _TO_XYXY)
            raise ValueError(
                f"jaxiou.convert: `{name}` is {value!r}, wanted one of {known}."
            )
    array = _checks.as_boxes("convert", "boxes", boxes)
    dtype = _checks.result_dtype(array)
    if source == target:
        return array.astype(dtype)
    return pack(_FROM_XYXY[target](*_TO_XYXY[source](*unpack(array))), dtype)


def area(boxes: _checks.Boxes) -> Float[Array, "*batch"]:
    """Area of boxes, (x2 - x1) (y2 - y1).

    Args:
        boxes: `(*batch, 4)`, xyxy, any unit.

    Returns:
        `(*batch)`, at least 0, in the squared unit and at least float32: in half
        precision a box of 600 × 600 would overflow, in int32 one of 50000 × 50000.

    At the edge:
        0 for an empty or inverted box. A box without width keeps the one-sided
        gradient, so that it can grow; an inverted one has gradient 0.

    Raises:
        ValueError: on shapes that are not boxes.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.area([[1.0, 2.0, 4.0, 8.0], [3.0, 1.0, 0.0, 2.0]]))
        [18.  0.]

    Reference:
        torchvision's `box_area`, in which inverted boxes have negative areas, and
        positive ones where both sides are.
    """
    x1, y1, x2, y2 = unpack(_checks.as_boxes("area", "boxes", boxes))
    return _numerics.nonnegative(x2 - x1) * _numerics.nonnegative(y2 - y1)


def clip(
    boxes: _checks.Boxes, height: _checks.ArrayLike, width: _checks.ArrayLike
) -> Num[Array, "*batch 4"]:
    """Cuts boxes to an image, [0, width] × [0, height].

    Args:
        boxes: `(*batch, 4)`, xyxy.
        height: of the image in the unit of the boxes; a number, or an array that
            broadcasts to `(*batch)`: for `(images, n, 4)` boxes of images that differ
            it has shape `(images, 1)`.
        width: likewise.

    Returns:
        `(*batch, 4)` in the boxes' dtype, integers included.

    At the edge:
        A box outside of the image becomes a line or point on its border, of area 0: see
        `is_valid`. The gradient is 0 for coordinates that were cut, and whole for those
        on the border.

    Raises:
        ValueError: on shapes that are not boxes, or sizes that do not broadcast.
        TypeError: on boolean or complex boxes, or integer boxes with a size that is not
            an integer.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.clip([[-2.0, 3.0, 7.0, 9.0]], 6, 5))
        [[0. 3. 5. 6.]]

    Reference:
        torchvision's `clip_boxes_to_image`.
    """
    array = _checks.as_boxes("clip", "boxes", boxes)
    across = _bound("width", width, array)
    down = _bound("height", height, array)

    def cut(x: Array, bound: Array) -> Array:
        # Selection in place of minimum and maximum: whole gradients at the border.
        x = jnp.where(x < 0, 0, x)
        return jnp.where(x > bound, bound, x)

    cuts = [cut(array[..., k], down if k % 2 else across) for k in range(4)]
    return jnp.stack(cuts, axis=-1).astype(array.dtype)


def is_valid(boxes: _checks.Boxes, *, min_size: float) -> Bool[Array, "*batch"]:
    """Whether boxes are finite, not inverted, and large enough.

    Both sides are at least `min_size`: x2 - x1 >= min_size and y2 - y1 >= min_size.

    Args:
        boxes: `(*batch, 4)`, xyxy, any unit.
        min_size: shortest side allowed, in that unit, at least 0. With 0 lines and
            points are valid.

    Returns:
        `(*batch)`, bool: a mask for `where=`.

    At the edge:
        False wherever a coordinate is NaN or infinite. Not differentiable.

    Raises:
        ValueError: on shapes that are not boxes, or a `min_size` that is negative, NaN
            or not a single number.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> boxes = [[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 1.5, 8.0], [4.0, 2.0, 1.0, 8.0]]
        >>> print(jaxiou.is_valid(boxes, min_size=1.0))
        [ True False False]

    Reference:
        torchvision's `remove_small_boxes`, which returns indices, as a mask.
    """
    array = _checks.as_boxes("is_valid", "boxes", boxes)
    if np.ndim(min_size) or not (_checks.is_traced(min_size) or min_size >= 0):
        raise ValueError(
            f"jaxiou.is_valid: `min_size` is {min_size!r}, wanted one number, at least "
            "0; 0 keeps lines and points."
        )
    finite = jnp.all(jnp.isfinite(array), axis=-1)
    x1, y1, x2, y2 = unpack(array)
    return finite & (x2 - x1 >= min_size) & (y2 - y1 >= min_size)


def check_boxes(
    boxes: _checks.Boxes, *, image_size: Sequence[float] | None = None
) -> None:
    """Looks for the usual mistakes in boxes and names the likely one.

    For a look at a data set, on the host: it reads the values, so it cannot run inside
    `jit`. In this order, the first that applies is reported:

    1. NaN or infinite coordinates;
    2. encoded offsets: small numbers of both signs, some boxes inverted;
    3. normalised coordinates against an image in pixels, or pixels against (1, 1);
    4. xywh or cxcywh given as xyxy: a quarter of the boxes or more inverted, but every
       one fits the image when read so;
    5. y first: some reach over the image, but every one fits with x and y exchanged;
    6. inverted boxes;
    7. boxes without area;
    8. boxes that reach over the image.

    3, 5 and 8 need `image_size`; without it 4 asks that half of the boxes are inverted
    and that no third or fourth number is negative.

    Args:
        boxes: `(*batch, 4)`, meant to be xyxy; without padding rows, which would be
            reported as boxes without area: pass `boxes[where]`.
        image_size: `(height, width)` in the unit of the boxes, as in
            `image.shape[:2]`; (1, 1) for normalised boxes.

    Returns:
        None where nothing is wrong.

    At the edge:
        No boxes at all are fine. A part in 10⁴ of the image is allowed for rounding.

    Raises:
        ValueError: naming the likely mistake, the first box it concerns and the fix;
            also on shapes that are not boxes, or an `image_size` that is not two
            positive numbers.
        TypeError: inside `jit`, and on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> jaxiou.check_boxes([[30.0, 20.0, 50.0, 60.0]], image_size=(80, 100))
        >>> try:
        ...     jaxiou.check_boxes([[30.0, 20.0, 20.0, 40.0]], image_size=(80, 100))
        ... except ValueError as error:
        ...     print(str(error).split(":")[1])
         `boxes` look like xywh given as xyxy

    Reference:
        None; the mistakes are those of issue trackers.
    """
    if _checks.is_traced(boxes):
        raise _traced()
    try:
        with jax.ensure_compile_time_eval():
            array = _checks.as_boxes("check_boxes", "boxes", boxes)
            values = np.asarray(array.astype(_checks.arithmetic_dtype(array)))
    except jax.errors.TracerArrayConversionError:
        raise _traced() from None
    size = None if image_size is None else _image_size(image_size)
    flat = values.astype(np.float64).reshape(-1, 4)
    if not len(flat):
        return
    for wrong, mistake, fix in _mistakes(flat, size):
        if not wrong.any():
            continue
        first = int(np.argmax(wrong))
        index = tuple(map(int, np.unravel_index(first, values.shape[:-1])))
        where = f"`boxes{list(index)}`" if index else "`boxes`"
        image = "" if size is None else f" in an image of (height, width) {size}"
        raise ValueError(
            f"jaxiou.check_boxes: `boxes` {mistake}: {wrong.sum()} of {len(flat)}, "
            f"first {where} = {flat[first].tolist()}{image}, wanted xyxy (x1, y1, "
            f"x2, y2) with x1 < x2 and y1 < y2; {fix}."
        )


_Mistake = tuple[np.ndarray, str, str]


def _mistakes(
    boxes: np.ndarray, size: tuple[float, float] | None
) -> Iterator[_Mistake]:
    """Boxes concerned, name and fix of every mistake, the most telling first."""
    # Before anything compares: NaN is neither small nor large.
    finite = np.isfinite(boxes).all(axis=-1)
    yield ~finite, "hold NaN or infinity", "drop them, or mask them with `where=`"
    x1, y1, x2, y2 = boxes.T
    inverted = (x2 < x1) | (y2 < y1)
    yield _encoded(boxes, inverted)
    if size is not None:
        yield from _wrong_unit(boxes, size)
    for layout in ("xywh", "cxcywh"):
        yield (
            inverted & _reads_as(layout, boxes, inverted, size),
            f"look like {layout} given as xyxy",
            f'convert them with `jaxiou.convert(boxes, "{layout}", "xyxy")`',
        )
    if size is not None:
        outside = ~_inside(boxes, size)
        yield (
            outside & bool(_inside(boxes, (size[1], size[0])).all()),
            "look like y-first (y1, x1, y2, x2) given as xyxy",
            'convert them with `jaxiou.convert(boxes, "yxyx", "xyxy")`; '
            "`image_size` is (height, width)",
        )
    yield inverted, "are inverted (x2 < x1 or y2 < y1)", "exchange the corners"
    yield (
        (x2 == x1) | (y2 == y1),
        "have no area",
        "drop them, or leave padding out of the check with `boxes[where]`",
    )
    if size is not None:
        outside = ~_inside(boxes, size)
        yield outside, "reach over the image", "cut them with `jaxiou.clip`"


def _encoded(boxes: np.ndarray, inverted: np.ndarray) -> _Mistake:
    small = np.abs(boxes).max() <= 10
    signs = (boxes > 0).any() and (boxes[:, 2:] < 0).any()
    return (
        inverted & bool(small and signs),
        "look like encoded offsets (dx, dy, dw, dh)",
        "decode them with `jaxiou.decode(deltas, anchors)`",
    )


def _wrong_unit(boxes: np.ndarray, size: tuple[float, float]) -> Iterator[_Mistake]:
    height, width = size
    normalised = min(size) > 2 and boxes.max() > 0 and _between(boxes, 0, 1).all()
    yield (
        np.full(len(boxes), normalised),
        "look like normalised coordinates, and `image_size` is in pixels",
        f"multiply them by ({width:g}, {height:g}, {width:g}, {height:g}), or pass "
        "`image_size=(1, 1)`",
    )
    yield (
        np.any(boxes > 2, axis=-1) & bool(max(size) <= 1),
        "look like pixels, and `image_size` is normalised",
        "divide them by (width, height, width, height), or pass the image's size",
    )


def _reads_as(
    layout: str,
    boxes: np.ndarray,
    inverted: np.ndarray,
    size: tuple[float, float] | None,
) -> bool:
    """Whether many boxes are inverted as xyxy and none is wrong in this layout."""
    if (boxes[:, 2:] < 0).any():
        return False
    if size is None:
        return layout == "xywh" and inverted.mean() >= 0.5
    read = np.stack(_TO_XYXY[layout](*boxes.T), axis=-1)
    return inverted.mean() >= 0.25 and bool(_inside(read, size).all())


def _inside(boxes: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    height, width = size
    x, y = boxes[:, 0::2], boxes[:, 1::2]
    return (_between(x, 0, width) & _between(y, 0, height)).all(axis=-1)


def _between(x: np.ndarray, low: float, high: float) -> np.ndarray:
    slack = 1e-4 * (high - low)
    return (x >= low - slack) & (x <= high + slack)


def _image_size(image_size: Any) -> tuple[float, float]:
    values = np.asarray(image_size, np.float64)
    if values.shape != (2,) or not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(
            f"jaxiou.check_boxes: `image_size` is {image_size!r}, wanted (height, "
            "width), two positive numbers; of an image pass `image.shape[:2]`."
        )
    height, width = values.tolist()
    return height, width


def _traced() -> TypeError:
    return TypeError(
        "jaxiou.check_boxes: `boxes` is traced, wanted values: this check runs on the "
        "host; call it on the data before `jit`, `vmap` or `grad`."
    )


def _bound(name: str, value: Any, boxes: Array) -> Array:
    """A side of the image as a scalar, or as an array of the boxes' rank."""
    bound = _checks.as_real("clip", name, value)
    # Not weakly typed: 480 would take on the dtype of 8-bit boxes, and wrap.
    bound = bound.astype(bound.dtype)
    integers = jnp.issubdtype(boxes.dtype, jnp.integer)
    if integers and not jnp.issubdtype(bound.dtype, jnp.integer):
        raise TypeError(
            f"jaxiou.clip: `boxes` are {boxes.dtype} and `{name}` is {bound.dtype}, "
            f"wanted an integer; round it, or make the boxes floating."
        )
    batch = boxes.shape[:-1]
    try:
        fits = jnp.broadcast_shapes(bound.shape, batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"jaxiou.clip: `{name}` has shape {bound.shape}, wanted one that "
            f"broadcasts to {batch}, the leading axes of `boxes`; a "
            f"size per image needs an axis of 1 for the boxes, `{name}[:, None]`."
        )
    if bound.ndim == 0:
        return bound
    return bound.reshape((1,) * (len(batch) - bound.ndim) + bound.shape)


def unpack(boxes: Array) -> Planes:
    """Saturated planes in the arithmetic dtype."""
    dtype = _checks.arithmetic_dtype(boxes)
    wide = _widen(boxes, dtype) if _is_half(boxes.dtype) else boxes.astype(dtype)
    return _measure.split(wide, dtype)


def pack(planes: Sequence[Array], dtype: jnp.dtype) -> Array:
    """Planes as an array of boxes; values too large for a half dtype saturate."""
    stacked = jnp.stack(jnp.broadcast_arrays(*planes), axis=-1)
    if _is_half(dtype):
        stacked = _numerics.saturate(stacked, float(jnp.finfo(dtype).max))
    return stacked.astype(dtype)


def _is_half(dtype: jnp.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.finfo(dtype).bits < 32


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _widen(boxes: Array, dtype: jnp.dtype) -> Array:
    """A cast from half precision whose gradient saturates on the way back."""
    return boxes.astype(dtype)


def _widen_fwd(boxes: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    # The residual carries the half dtype only.
    return boxes.astype(dtype), jnp.zeros((), boxes.dtype)


def _widen_bwd(dtype: jnp.dtype, residual: Array, cotangent: Array) -> tuple[Array]:
    limit = float(jnp.finfo(residual.dtype).max)
    return (_numerics.saturate(cotangent, limit).astype(residual.dtype),)


_widen.defvjp(_widen_fwd, _widen_bwd)
