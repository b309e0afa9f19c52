"""Shape and dtype errors in one style.

Every message names the function, the argument, what came, what was wanted, and the
likely fix. All checks look at static properties only, so they run at trace time and
cost nothing in the compiled program.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Num

ArrayLike: TypeAlias = Array | np.ndarray | Sequence[Any] | float
"""Whatever `jnp.asarray` accepts: JAX and NumPy arrays, nested lists, scalars."""

Boxes: TypeAlias = Num[Array, "*batch 4"] | Num[np.ndarray, "*batch 4"] | Sequence[Any]
Mask: TypeAlias = Bool[Array, "*batch"] | Bool[np.ndarray, "*batch"] | Sequence[Any]

_LAYOUTS = {
    2: "(t1, t2)",
    4: "(x1, y1, x2, y2)",
    5: "(cx, cy, w, h, angle)",
    6: "(x1, y1, z1, x2, y2, z2)",
    7: "(cx, cy, cz, dx, dy, dz, yaw)",
}


def as_real(function: str, name: str, value: ArrayLike) -> Array:
    """Converts to an array of a real, non-boolean dtype."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        # None, strings and ragged lists; their contents may be long.
        raise type(error)(
            f"jaxiou.{function}: `{name}` is a {type(value).__name__} that makes no "
            f"array ({error}), wanted numbers; pad lists of different lengths to one "
            "length and leave the padding out with `where=`."
        ) from None
    if array.dtype == jnp.bool_ or not (
        jnp.issubdtype(array.dtype, jnp.floating)
        or jnp.issubdtype(array.dtype, jnp.integer)
    ):
        raise TypeError(
            f"jaxiou.{function}: `{name}` has dtype {array.dtype}, wanted a floating "
            f"or integer dtype. A mask belongs in `where=`."
        )
    return array


def as_number(function: str, name: str, value: Any) -> Array:
    """A real number, which may be traced."""
    array = as_real(function, name, value)
    if array.ndim:
        raise ValueError(
            f"jaxiou.{function}: `{name}` has shape {array.shape}, wanted one number; "
            "for one per image use `jax.vmap`."
        )
    return array


def as_integers(function: str, name: str, value: Any, advice: str) -> Array:
    """Converts to an array of integers, labels for example."""
    array = as_real(function, name, value)
    # `[]`, as of an image without boxes, would be floating.
    if array.size == 0 and not hasattr(value, "dtype"):
        array = array.astype(jnp.int32)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"jaxiou.{function}: `{name}` has dtype {array.dtype}, wanted {advice}; "
            "convert with `labels.astype(int)`."
        )
    return array


def as_boxes(
    function: str, name: str, value: ArrayLike, *, coordinates: int = 4, rank: int = 1
) -> Array:
    """Converts to a box array: at least `rank` axes, the last one the coordinates."""
    array = as_real(function, name, value)
    # `[]` is what an image without boxes looks like in plain Python.
    if array.shape == (0,):
        array = array.reshape(0, coordinates)
    layout = _LAYOUTS.get(coordinates, "")
    if array.ndim < rank or array.shape[-1] != coordinates:
        leading = "(..., n, " if rank > 1 else "(..., "
        hint = (
            "add a leading axis with `boxes[None]`"
            if array.ndim and array.shape[-1] == coordinates
            else "the coordinates go on the last axis; select them with "
            f"`boxes[..., :{coordinates}]` or move the axis with `jnp.moveaxis`"
        )
        raise ValueError(
            f"jaxiou.{function}: `{name}` has shape {array.shape}, wanted "
            f"{leading}{coordinates}) boxes {layout}; {hint}."
        )
    return array


def as_mask(
    function: str,
    name: str,
    value: ArrayLike,
    shape: tuple[int, ...],
    *,
    unit: str = "box (not per coordinate)",
) -> Array:
    """Converts to a boolean array that broadcasts to `shape`."""
    mask = jnp.asarray(value)
    if mask.dtype != jnp.bool_:
        raise TypeError(
            f"jaxiou.{function}: `{name}` has dtype {mask.dtype}, wanted bool; "
            f"compare first, as in `{name}=weights > 0`."
        )
    try:
        fits = jnp.broadcast_shapes(mask.shape, shape) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"jaxiou.{function}: `{name}` has shape {mask.shape}, wanted one that "
            f"broadcasts to {tuple(shape)}, one entry per {unit}."
        )
    return jnp.broadcast_to(mask, shape)


def broadcast_batch(
    function: str,
    names: tuple[str, str],
    shape1: tuple[int, ...],
    shape2: tuple[int, ...],
) -> tuple[int, ...]:
    """Broadcasts the leading axes of two arguments or says which ones clash."""
    try:
        return jnp.broadcast_shapes(shape1, shape2)
    except ValueError:
        hint = (
            "for every pair of two sets use `jaxiou.pairwise`"
            if len(shape1) == len(shape2) == 1
            else "insert axes of size 1 where the arguments should repeat"
        )
        raise ValueError(
            f"jaxiou.{function}: leading axes {shape1} of `{names[0]}` and {shape2} "
            f"of `{names[1]}` do not broadcast; {hint}."
        ) from None


def arithmetic_dtype(*arrays: Array) -> jnp.dtype:
    """The dtype in which overlaps are computed: float32 or the inputs' wider one."""
    return jnp.dtype(jnp.result_type(jnp.float32, *(a.dtype for a in arrays)))


def result_dtype(*arrays: Array) -> jnp.dtype:
    """The floating dtype of the inputs; float32 where all are integers."""
    floating = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    return jnp.dtype(jnp.result_type(*floating)) if floating else jnp.dtype(jnp.float32)


def number(
    function: str,
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    default: str,
) -> None:
    """Refuses what is no finite Python number in (above, most] and [least, most]."""
    if (
        isinstance(value, int | float)
        and math.isfinite(value)
        and value > above
        and least <= value <= most
    ):
        return
    left, low = ("[", least) if least > above else ("(", above)
    raise ValueError(
        f"jaxiou.{function}: `{name}` is {value!r}, wanted a finite number in "
        f"{left}{low}, {most}]; {default} is usual."
    )


def is_traced(value: object) -> bool:
    """Whether `value` is a tracer, on which host-side checks cannot look."""
    return isinstance(value, jax.core.Tracer)


def is_sharded(array: Array, *, start: int = 0) -> bool:
    """Whether the type of an array shards an axis from `start` on (Explicit axes)."""
    spec = jax.typeof(array).sharding.spec
    return any(entry is not None for entry in tuple(spec)[start:])
