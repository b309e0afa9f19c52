"""What assigners are given: checked, and brought to one flat batch axis."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import _checks, _loops
from .matrix import Operands


def operands_of(
    function: str,
    measure: Any,
    anchors: Any,
    targets: Any,
    where_anchors: Any,
    where: Any,
    names: tuple[str, str] = ("anchors", "targets"),
) -> Operands:
    masks = "where_anchors", "where"
    operands = Operands(
        function, measure, anchors, targets, where_anchors, where, names, masks
    )
    return operands.gathered()


def arrays_of(operands: Operands) -> tuple[Array, ...]:
    boxes = operands.boxes1, operands.boxes2
    return *map(jax.lax.stop_gradient, boxes), operands.where1, operands.where2


def predicted(
    operands: Operands, scores: Any, points: Any, labels: Any
) -> tuple[Array, ...]:
    """Points, scores and labels, checked, with the flat batch axis of the boxes."""
    n, m = operands.boxes1.shape[1], operands.boxes2.shape[1]
    dimensions = operands.measure.coordinates // 2
    array = jnp.asarray(scores)
    classes = array.shape[-1] if array.ndim else 0
    advice = "integers, columns of `scores`"
    labels = _checks.as_integers(operands.function, "labels", labels, advice)
    if m and not classes:
        raise ValueError(
            f"jaxiou.{operands.function}: `scores` has shape {array.shape}, wanted a "
            "column per class in its last axis."
        )
    return (
        extra(operands, "anchor_points", points, (n, dimensions), "per prediction"),
        extra(operands, "scores", scores, (n, classes), "per prediction").astype(
            _checks.arithmetic_dtype(array)
        ),
        extra(operands, "labels", labels, (m,), "per target"),
    )


def extra(
    operands: Operands, name: str, value: Any, shape: tuple[int, ...], unit: str
) -> Array:
    """An array whose last axes have that shape, spread over the batch of the boxes."""
    array = _checks.as_real(operands.function, name, value)
    whole = (*operands.batch, *shape)
    lead = array.ndim - len(shape)
    try:
        fits = lead >= 0 and array.shape[lead:] == shape
        fits &= jnp.broadcast_shapes(array.shape, whole) == whole
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"jaxiou.{operands.function}: `{name}` has shape {array.shape}, wanted "
            f"{whole} or fewer leading axes, one entry {unit}."
        )
    array = jnp.broadcast_to(_loops.replicate(jax.lax.stop_gradient(array)), whole)
    return (
        array.reshape(-1, *shape)
        if array.size
        else array.reshape(operands.boxes1.shape[0], *shape)
    )


def count(function: str, name: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(
            f"jaxiou.{function}: `{name}` is {value!r}, wanted an integer of at least "
            "1; it is part of the compiled program, so it cannot be traced."
        )
