"""All pairs of two sets: the matrix, and the best partners without the matrix."""

__all__ = ["BestMatch", "best_match", "pairwise"]

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import _checks, _loops, _measure, kernels
from ._measure import Measure
from .kernels import Choice
from .kernels.xla import Matches
from .measures import iou

AxisName: TypeAlias = str | tuple[str, ...]


class BestMatch(NamedTuple):
    """For every box of two sets its best partner in the other set.

    Attributes:
        values1: `(*batch, n)`, best value of each box of the first set; `-inf` where
            there is no partner.
        indices1: `(*batch, n)`, index of that partner in the second set; -1 where
            there is none.
        values2: `(*batch, m)`, the same for the second set.
        indices2: `(*batch, m)`, indices into the first set.
    """

    values1: Float[Array, "*batch n"]
    indices1: Int[Array, "*batch n"]
    values2: Float[Array, "*batch m"]
    indices2: Int[Array, "*batch m"]


def pairwise(
    boxes1: _checks.Boxes,
    boxes2: _checks.Boxes,
    *,
    measure: Measure = iou,
    where1: _checks.Mask | None = None,
    where2: _checks.Mask | None = None,
    implementation: str | None = None,
) -> Float[Array, "*batch n m"]:
    """The matrix of a measure between two sets of boxes.

    out[i, j] = measure(boxes1[i], boxes2[j]).

    Args:
        boxes1: `(*batch, n, 4)`, or as many coordinates as the measure takes.
        boxes2: `(*batch, m, 4)`; leading axes broadcast.
        measure: any measure.
        where1: `(*batch, n)`, False for boxes to leave out.
        where2: `(*batch, m)`, likewise.
        implementation: None for the fastest that runs wherever the program does, or
            "xla", "mosaic_gpu" (Hopper and newer), "mosaic_tpu"; a kernel takes float32
            arithmetic, and one device or the inside of `jax.shard_map`.

    Returns:
        `(*batch, n, m)` in the boxes' floating dtype (float32 for integers); exactly 0,
        with gradient 0, where either box is left out.

    At the edge:
        n or m may be 0. The gradient recomputes the matrix in blocks of rows and stores
        nothing of size n × m.

    Raises:
        ValueError: on shapes that are not boxes, leading axes that do not broadcast, or
            an unknown implementation.
        TypeError: on a `measure` that is not one, or a mask that is not boolean.
        NotImplementedError: where a named implementation cannot serve the call.

    Example:
        >>> import jaxiou
        >>> boxes = [[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]]
        >>> print(jaxiou.pairwise(boxes, [[0.0, 0.0, 4.0, 4.0]]))
        [[0.5   ]
         [0.5625]]

    Reference:
        torchvision's `box_iou` and its generalized, distance and complete forms, which
        return NaN for two empty boxes.
    """
    measure = _measure.as_measure("pairwise", measure)
    kernel = kernels.pick("pairwise", implementation)
    operands = Operands("pairwise", measure, boxes1, boxes2, where1, where2)
    array1 = _measure.select(operands.where1, operands.boxes1)
    # Rows and columns cannot both lie along one mesh axis: the columns are gathered.
    operands.boxes2 = _loops.replicate(operands.boxes2, keep=1)
    operands.where2 = _loops.replicate(operands.where2, keep=1)
    array2 = _measure.select(operands.where2, operands.boxes2)
    # Inside of `shard_map` the gradient of what devices share is a sum over them.
    array1, array2 = _loops.varying((array1, array2), (array1, array2))
    dense = _dense if measure.forward else _pairwise
    values = dense(measure, kernel, array1, array2)
    if where1 is not None or where2 is not None:
        keep = operands.where1[:, :, None] & operands.where2[:, None, :]
        values = jnp.where(keep, values, 0)
    values = values.reshape(*operands.batch, *values.shape[1:])
    return _measure.narrow(values, operands.result_dtype)


def best_match(
    boxes1: _checks.Boxes,
    boxes2: _checks.Boxes,
    *,
    measure: Measure = iou,
    where1: _checks.Mask | None = None,
    where2: _checks.Mask | None = None,
    axis_name: AxisName | None = None,
    implementation: str | None = None,
) -> BestMatch:
    """For every box its best partner on the other side, without the matrix.

    Equal to the maximum and argmax of `pairwise` over both axes in memory O(n + m).

    Args:
        boxes1: `(*batch, n, 4)`, or as many coordinates as the measure takes.
        boxes2: `(*batch, m, 4)`; leading axes broadcast.
        measure: any measure.
        where1: `(*batch, n)`, False for boxes that match nothing.
        where2: `(*batch, m)`, likewise.
        axis_name: inside of `jax.shard_map`, the axis or axes of the mesh over which
            `boxes1` is cut into parts, `boxes2` being the same everywhere: the best
            partners of `boxes2` are those of all parts, and `indices2` counts through
            them. Only `(*batch, m)` numbers go between devices.
        implementation: None for the fastest that runs wherever the program does, or
            "xla", "mosaic_gpu" (Hopper and newer), "mosaic_tpu"; a kernel takes float32
            arithmetic, and one device or the inside of `jax.shard_map`.

    Returns:
        `BestMatch(values1, indices1, values2, indices2)`, values in the arithmetic
        dtype (at least float32), indices int32; the lowest index at ties, index -1 and
        value -inf where there is no partner.

    At the edge:
        A pair whose value is NaN does not match. Not differentiable: the values carry
        no gradient; apply the measure to the matched pairs instead.

    Raises:
        ValueError: on shapes that are not boxes, leading axes that do not broadcast,
            an unknown implementation, or an `axis_name` outside of `jax.shard_map`.
        TypeError: on a `measure` that is not one, or a mask that is not boolean.
        NotImplementedError: where a named implementation cannot serve the call.

    Example:
        >>> import jaxiou
        >>> boxes = [[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0], [7.0, 7.0, 8.0, 9.0]]
        >>> best = jaxiou.best_match(boxes, [[0.0, 0.0, 4.0, 4.0]])
        >>> print(best.values1, best.indices1, best.values2, best.indices2)
        [0.5    0.5625 0.    ] [0 0 0] [0.5625] [1]

    Reference:
        The reduction inside the matchers of detectron2 and torchvision, which write the
        matrix first.
    """
    operands = Operands("best_match", measure, boxes1, boxes2, where1, where2)
    matches = match(operands, axis_name=axis_name, implementation=implementation)
    return BestMatch(*(operands.unbatch(x) for x in matches[:4]))


class Operands:
    """Two checked sets of boxes, broadcast to one flat batch axis, and their masks."""

    def __init__(
        self,
        function: str,
        measure: Any,
        boxes1: Any,
        boxes2: Any,
        where1: Any,
        where2: Any,
        names: tuple[str, str] = ("boxes1", "boxes2"),
        masks: tuple[str, str] = ("where1", "where2"),
    ):
        self.function = function
        self.measure = _measure.as_measure(function, measure)
        arrays = [
            _checks.as_boxes(
                function, name, boxes, coordinates=self.measure.coordinates, rank=2
            )
            for name, boxes in zip(names, (boxes1, boxes2), strict=True)
        ]
        self.result_dtype = _checks.result_dtype(*arrays)
        self.batch = _checks.broadcast_batch(
            function, names, arrays[0].shape[:-2], arrays[1].shape[:-2]
        )
        arrays = list(_measure.promote(*arrays))
        self.boxes1, self.boxes2 = (
            self._flat(_measure.spread(self.measure, a, (*self.batch, a.shape[-2])), 2)
            for a in arrays
        )
        self.where1, self.where2 = (
            self.mask(name, where, array.shape[1])
            for name, where, array in zip(
                masks, (where1, where2), (self.boxes1, self.boxes2), strict=True
            )
        )

    def _flat(self, array: Array, core: int) -> Array:
        shape = array.shape[array.ndim - core :]
        array = jnp.broadcast_to(array, (*self.batch, *shape))
        return array.reshape(math.prod(self.batch), *shape)

    def mask(self, name: str, where: Any, size: int) -> Array:
        if where is None:
            return jnp.ones((math.prod(self.batch), size), bool)
        mask = _checks.as_mask(self.function, name, where, (*self.batch, size))
        return self._flat(mask, 1)

    def gathered(self) -> "Operands":
        """The same operands with nothing sharded, for walking blocks of rows."""
        self.boxes1, self.boxes2, self.where1, self.where2 = (
            _loops.replicate(x)
            for x in (self.boxes1, self.boxes2, self.where1, self.where2)
        )
        return self

    def unbatch(self, array: Array) -> Array:
        return array.reshape(*self.batch, *array.shape[1:])


def match(
    operands: Operands,
    *,
    ties: bool = False,
    axis_name: AxisName | None = None,
    implementation: str | None = None,
) -> Matches:
    """`best_match` on prepared operands, with the tied rows that matching needs."""
    kernel = kernels.pick(operands.function, implementation)
    operands = operands.gathered()
    dtype = _checks.arithmetic_dtype(operands.boxes1, operands.boxes2)
    planes1, planes2 = (
        _measure.split(jax.lax.stop_gradient(x), dtype)
        for x in (operands.boxes1, operands.boxes2)
    )

    def run(where2: Array, ties: bool) -> Matches:
        return kernel.best_match(
            operands.measure, planes1, planes2, operands.where1, where2, ties=ties
        )

    if axis_name is None:
        return run(operands.where2, ties)
    try:
        first = first_row(operands, axis_name)
    except NameError:
        raise ValueError(
            f"jaxiou.{operands.function}: `axis_name` is {axis_name!r}, wanted an axis "
            "of the mesh, or a tuple of axes, inside of `jax.shard_map`; leave it out "
            "elsewhere."
        ) from None
    found = run(operands.where2, False)
    best = jax.lax.pmax(found.values2, axis_name)
    here = (found.values2 == best) & (found.indices2 >= 0)
    nowhere = jnp.iinfo(jnp.int32).max
    index = found.indices2 + first
    index = jax.lax.pmin(jnp.where(here, index, nowhere), axis_name)
    index = jnp.where(index == nowhere, -1, index)
    # Columns whose best is elsewhere tie with nothing here.
    tied = run(operands.where2 & here, True).tied1 if ties else found.tied1
    return found._replace(values2=best, indices2=index, tied1=tied)


def first_row(operands: Operands, axis_name: AxisName | None) -> Array | int:
    """How many boxes of the first side are on the devices before this one."""
    if axis_name is None:
        return 0
    return operands.boxes1.shape[1] * jax.lax.axis_index(axis_name)


def _dense(measure: Measure, kernel: Choice, boxes1: Array, boxes2: Array) -> Array:
    dtype = _checks.arithmetic_dtype(boxes1, boxes2)
    return kernel.pairwise(
        measure, _measure.split(boxes1, dtype), _measure.split(boxes2, dtype)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pairwise(measure: Measure, kernel: Choice, boxes1: Array, boxes2: Array) -> Array:
    return _dense(measure, kernel, boxes1, boxes2)


def _pairwise_fwd(
    measure: Measure, kernel: Choice, boxes1: Array, boxes2: Array
) -> tuple[Array, tuple[Array, Array]]:
    values = _pairwise(measure, kernel, boxes1, boxes2)
    # Behind a barrier for the reason given in `_measure._aligned_fwd`.
    return values, jax.lax.optimization_barrier((boxes1, boxes2))


def _pairwise_bwd(
    measure: Measure,
    kernel: Choice,
    residuals: tuple[Array, Array],
    cotangent: Array,
) -> tuple[Array, ...]:
    dtype = _checks.arithmetic_dtype(*residuals)
    planes1, planes2 = (_measure.split(boxes, dtype) for boxes in residuals)
    gradients = kernel.pairwise_vjp(measure, planes1, planes2, cotangent)
    return tuple(
        _measure.join(g, boxes) for g, boxes in zip(gradients, residuals, strict=True)
    )


_pairwise.defvjp(_pairwise_fwd, _pairwise_bwd)
