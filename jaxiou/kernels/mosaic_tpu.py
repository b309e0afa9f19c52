"""Kernels for a TPU (Pallas, Mosaic TPU).

A TPU computes on registers of 8 sublanes × 128 lanes. Blocks are walked in pieces of 8
sublanes, few enough values at a time for the registers to hold. Boxes come as planes,
boxes on lanes; those that belong on sublanes are turned round once per block.

Not measured: these kernels were compiled for TPUs, and run in Pallas' interpreter only.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from .._measure import Measure, Planes
from . import _blocks, xla
from ._blocks import round_up, struct
from .xla import Matches

OPERATIONS = _blocks.COMMON | _blocks.names("atan2 ceil logistic")
_LANES, _SUBLANES = 128, 8
# Boxes per block. Wider blocks would need more than the 64 registers there are.
_MATCH_LANES, _MATCH_SUBLANES = 512, 1024
_DENSE_LANES, _DENSE_SUBLANES = 512, 256
_BACK_LANES, _BACK_SUBLANES = 256, 128


def suits() -> bool:
    """Whether the TPUs of this machine are of the right kind: all are."""
    return True


def _columns(ref: Any, rows: Any, count: int) -> Planes:
    """Some boxes on sublanes, `(8, 1)` per plane, of boxes that were turned round."""
    return tuple(ref[rows, k : k + 1] for k in range(count))


def _rows(ref: Any, count: int) -> Planes:
    """Boxes on lanes, `(1, n)` per plane."""
    return tuple(ref[k : k + 1, :] for k in range(count))


def _piece(step: Array) -> Any:
    return pl.ds(pl.multiple_of(step * _SUBLANES, _SUBLANES), _SUBLANES)


def _call(name: str, body: Any, **options: Any) -> Any:
    grid = options["grid"]
    order: list[Any] = ["parallel"] * (len(grid) - 1)
    parameters = pltpu.CompilerParams(dimension_semantics=(*order, "arbitrary"))
    return pl.pallas_call(body, compiler_params=parameters, name=name, **options)


def pairwise(measure: Measure, planes1: Planes, planes2: Planes) -> Array:
    """`xla.pairwise`: rows on sublanes, columns on lanes."""
    (batch, n), m, count = planes1[0].shape, planes2[0].shape[1], len(planes1)
    if not batch * n * m:
        return xla.pairwise(measure, planes1, planes2)
    rows = min(_DENSE_SUBLANES, round_up(n, _SUBLANES))
    turned, lanes = round_up(rows, _LANES), min(_DENSE_LANES, round_up(m, _LANES))
    steps1, steps2 = pl.cdiv(n, rows), pl.cdiv(m, lanes)
    boxes1 = _blocks.stack(planes1, max(turned, steps1 * rows), _SUBLANES)
    boxes2 = _blocks.stack(planes2, steps2 * lanes)

    def body(boxes1: Any, boxes2: Any, out: Any, columns: Any) -> None:
        columns[...] = boxes1[...].T
        on_lanes = _rows(boxes2, count)

        def step(k: Array, _: None) -> None:
            on_sublanes = _columns(columns, _piece(k), count)
            out[_piece(k), :] = _blocks.values(measure, on_sublanes, on_lanes)

        jax.lax.fori_loop(0, rows // _SUBLANES, step, None)

    return _call(
        "jaxiou_pairwise",
        body,
        grid=(batch, steps1, steps2),
        in_specs=[
            pl.BlockSpec((None, boxes1.shape[1], turned), lambda b, i, j: (b, 0, i)),
            pl.BlockSpec((None, count, lanes), lambda b, i, j: (b, 0, j)),
        ],
        out_specs=pl.BlockSpec((None, rows, lanes), lambda b, i, j: (b, i, j)),
        out_shape=struct((batch, n, m), planes1[0].dtype, planes1[0]),
        scratch_shapes=[pltpu.VMEM((turned, boxes1.shape[1]), jnp.float32)],
    )(boxes1, boxes2)


def pairwise_vjp(
    measure: Measure, planes1: Planes, planes2: Planes, cotangent: Array
) -> tuple[Planes, Planes]:
    """`xla.pairwise_vjp`, the larger set on lanes, as XLA lays out such a matrix.

    The other set gets one partial sum per block of lanes.
    """
    if not cotangent.size:
        return xla.pairwise_vjp(measure, planes1, planes2, cotangent)

    def slopes(on_sublanes: Planes, on_lanes: Planes, given: Array) -> Planes:
        return _blocks.derivative(measure, on_sublanes, on_lanes, given)

    def turned(on_sublanes: Planes, on_lanes: Planes, given: Array) -> Planes:
        both = _blocks.derivative(measure, on_lanes, on_sublanes, given)
        return both[len(on_lanes) :] + both[: len(on_lanes)]

    if planes1[0].shape[1] > planes2[0].shape[1]:
        sums = _sums(turned, planes2, planes1, cotangent.swapaxes(1, 2))
        return sums[1], sums[0]
    return _sums(slopes, planes1, planes2, cotangent)


def _sums(
    slopes: Callable[..., Planes], planes1: Planes, planes2: Planes, cotangent: Array
) -> tuple[Planes, Planes]:
    """Sums of slopes along both axes, the first one on sublanes."""
    (batch, n, m), count = cotangent.shape, len(planes1)
    rows, lanes = _BACK_SUBLANES, min(_BACK_LANES, round_up(m, _LANES))
    steps1, steps2 = pl.cdiv(n, rows), pl.cdiv(m, lanes)
    used = rows if steps1 > 1 else round_up(n, _SUBLANES)
    boxes1 = _blocks.stack(planes1, steps1 * rows, _SUBLANES)
    boxes2 = _blocks.stack(planes2, steps2 * lanes)
    like = planes1[0]
    sums1, sums2 = _call(
        "jaxiou_pairwise_vjp",
        functools.partial(_back, slopes, count, (n, m)),
        grid=(batch, steps2, steps1),
        in_specs=[
            pl.BlockSpec((None, boxes1.shape[1], rows), lambda b, j, i: (b, 0, i)),
            pl.BlockSpec((None, count, lanes), lambda b, j, i: (b, 0, j)),
            pl.BlockSpec((None, used, lanes), lambda b, j, i: (b, i, j)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, count, rows), lambda b, j, i: (b, j, 0, i)),
            pl.BlockSpec((None, count, lanes), lambda b, j, i: (b, 0, j)),
        ],
        out_shape=[
            struct((batch, steps2, count, steps1 * rows), like.dtype, like),
            struct((batch, count, steps2 * lanes), like.dtype, like),
        ],
        scratch_shapes=[
            pltpu.VMEM((rows, boxes1.shape[1]), jnp.float32),
            pltpu.VMEM((count, rows, _LANES), jnp.float32),
        ],
    )(boxes1, boxes2, cotangent)
    sums1 = sums1.sum(axis=1)
    return (
        tuple(sums1[:, k, :n] for k in range(count)),
        tuple(sums2[:, k, :m] for k in range(count)),
    )


def _back(
    slopes: Callable[..., Planes], count: int, size: tuple[int, int], *refs: Any
) -> None:
    boxes1, boxes2, cotangent, sums1, sums2, columns, strips = refs
    j, i = pl.program_id(1), pl.program_id(2)
    rows, lanes = cotangent.shape
    piece = _SUBLANES, lanes
    columns[...] = boxes1[...].T
    wide2 = tuple(jnp.broadcast_to(p, piece) for p in _rows(boxes2, count))
    column = j * lanes + jax.lax.broadcasted_iota(jnp.int32, piece, 1)
    row = i * rows + jax.lax.broadcasted_iota(jnp.int32, piece, 0)

    def step(k: Array, totals: Planes) -> Planes:
        wide1 = _columns(columns, _piece(k), count)
        wide1 = tuple(jnp.broadcast_to(p, piece) for p in wide1)
        # Beyond the edge of the matrix lies anything.
        inside = (row < size[0] - k * _SUBLANES) & (column < size[1])
        over = slopes(wide1, wide2, jnp.where(inside, cotangent[_piece(k), :], 0))
        for p, plane in enumerate(over[:count]):
            parts = (plane[:, x : x + _LANES] for x in range(0, lanes, _LANES))
            strips[p, _piece(k), :] = functools.reduce(jnp.add, parts)
        return tuple(t + plane for t, plane in zip(totals, over[count:], strict=True))

    zeros = tuple(jnp.zeros(piece, jnp.float32) for _ in range(count))
    totals = jax.lax.fori_loop(0, rows // _SUBLANES, step, zeros)
    for p, total in enumerate(totals):
        sums1[p : p + 1, :] = strips[p].T.sum(axis=0, keepdims=True)
        total = total.sum(axis=0, keepdims=True)
        sums2[p : p + 1, :] = jnp.where(i == 0, total, sums2[p : p + 1, :] + total)


def best_match(
    measure: Measure,
    planes1: Planes,
    planes2: Planes,
    where1: Array,
    where2: Array,
    *,
    ties: bool = False,
) -> Matches:
    """`xla.best_match`: the first set on lanes, the second one on sublanes."""
    if not (planes1[0].size and planes2[0].size):
        return xla.best_match(measure, planes1, planes2, where1, where2, ties=ties)
    (batch, n), m = planes1[0].shape, planes2[0].shape[1]
    lanes = min(_MATCH_LANES, round_up(n, _LANES))
    turned = min(_MATCH_SUBLANES, round_up(m, _LANES))
    steps1, steps2 = pl.cdiv(n, lanes), pl.cdiv(m, turned)
    used = round_up(m, _SUBLANES) if steps2 == 1 else turned
    size1, size2 = steps1 * lanes, steps2 * turned
    boxes1 = _blocks.stack(planes1, size1)
    bound1 = _blocks.thresholds(where1, size1)[:, None]
    bound2 = _blocks.thresholds(where2, size2)[:, None]
    like, whole = planes1[0], jnp.int32

    def launch(goal: Array) -> tuple[Array, ...]:
        boxes2 = _blocks.stack((*planes2, goal), size2)
        boxes2 = jnp.concatenate([boxes2, bound2], axis=1)
        padding = round_up(boxes2.shape[1], _SUBLANES) - boxes2.shape[1]
        boxes2 = jnp.pad(boxes2, ((0, 0), (0, padding), (0, 0)))
        depth = boxes2.shape[1]
        over1 = pl.BlockSpec((None, None, 1, lanes), lambda b, j, i: (b, j, 0, i))
        over2 = pl.BlockSpec((None, 1, turned), lambda b, j, i: (b, 0, j))
        shape1, shape2 = (batch, steps2, 1, size1), (batch, 1, size2)
        value1, index1, tied, value2, index2 = _call(
            "jaxiou_best_match",
            functools.partial(_match, measure, used, ties),
            grid=(batch, steps2, steps1),
            in_specs=[
                pl.BlockSpec((None, len(planes1), lanes), lambda b, j, i: (b, 0, i)),
                pl.BlockSpec((None, 1, lanes), lambda b, j, i: (b, 0, i)),
                pl.BlockSpec((None, depth, turned), lambda b, j, i: (b, 0, j)),
            ],
            out_specs=[over1, over1, over1, over2, over2],
            out_shape=[
                struct(shape1, like.dtype, like),
                struct(shape1, whole, like),
                struct(shape1, whole, like),
                struct(shape2, like.dtype, like),
                struct(shape2, whole, like),
            ],
            scratch_shapes=[
                pltpu.VMEM((turned, depth), jnp.float32),
                pltpu.VMEM((turned, _LANES), jnp.float32),
                pltpu.VMEM((turned, _LANES), jnp.int32),
            ],
        )(boxes1, bound1, boxes2)
        best1, found1 = _blocks.first_best(value1, index1, axis=1)
        best2, found2 = _blocks.first_best(value2, index2, axis=1)
        tied = tied.any(axis=1)[:, 0, :n]
        return best1[:, 0, :n], found1[:, 0, :n], best2[:, :m], found2[:, :m], tied

    return _blocks.in_rounds(launch, measure, planes2, ties)


def _match(measure: Measure, used: int, ties: bool, *refs: Any) -> None:
    """One block: the first `used` boxes on sublanes against those on lanes.

    What every column of 8 sublanes has seen so far lies in registers, what every box
    on sublanes has seen in each of the 128 lanes lies in `tops` until the last block.
    """
    boxes1, bound1, boxes2, value1, index1, tied1, value2, index2, *scratch = refs
    columns, tops, places = scratch
    j, i, last = pl.program_id(1), pl.program_id(2), pl.num_programs(2) - 1
    turned, lanes, count = columns.shape[0], boxes1.shape[1], boxes1.shape[0]
    piece, groups = (_SUBLANES, lanes), lanes // _LANES
    far = jnp.iinfo(jnp.int32).max

    @pl.when(i == 0)
    def _() -> None:
        columns[...] = boxes2[...].T
        tops[...] = jnp.full(tops.shape, -jnp.inf, jnp.float32)
        places[...] = jnp.zeros(places.shape, jnp.int32)

    on_lanes, bounds = _rows(boxes1, count), bound1[...]

    def step(k: Array, best: tuple[Array, ...]) -> tuple[Array, ...]:
        top, place, tied = best
        *on_sublanes, goal, bound = _columns(columns, _piece(k), count + 2)
        found = _blocks.values(measure, on_lanes, tuple(on_sublanes))
        found = jnp.where(found > jnp.maximum(bounds, bound), found, -jnp.inf)
        if ties:
            tied = jnp.where(found == goal, 1, tied)
        better = found > top
        top, place = jnp.where(better, found, top), jnp.where(better, k, place)
        row_top, row_place = tops[_piece(k), :], places[_piece(k), :]
        for g in range(groups):
            part = found[:, g * _LANES : (g + 1) * _LANES]
            better = part > row_top
            row_top = jnp.where(better, part, row_top)
            row_place = jnp.where(better, i * groups + g, row_place)
        tops[_piece(k), :], places[_piece(k), :] = row_top, row_place
        return top, place, tied

    start = (
        jnp.full(piece, -jnp.inf, jnp.float32),
        jnp.zeros(piece, jnp.int32),
        jnp.zeros(piece, jnp.int32),
    )
    top, place, tied = jax.lax.fori_loop(0, used // _SUBLANES, step, start)
    sublane = jax.lax.broadcasted_iota(jnp.int32, piece, 0)
    best = top.max(axis=0, keepdims=True)
    place = jnp.where(top == best, place * _SUBLANES + sublane, far)
    value1[...] = best
    index1[...] = j * turned + place.min(axis=0, keepdims=True)
    tied1[...] = tied.max(axis=0, keepdims=True)

    @pl.when(i == last)
    def _() -> None:
        top, place = tops[...].T, places[...].T
        lane = jax.lax.broadcasted_iota(jnp.int32, top.shape, 0)
        best = top.max(axis=0, keepdims=True)
        place = jnp.where(top == best, place * _LANES + lane, far)
        value2[...] = best
        index2[...] = place.min(axis=0, keepdims=True)
