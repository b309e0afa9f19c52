"""Kernels for an NVIDIA GPU, Hopper or newer (Pallas, Mosaic GPU).

A block of threads, one warpgroup, holds a tile of the matrix in its registers, reads
boxes straight from global memory, where the few there are lie in the caches, and keeps
what a tile has found in registers as long as it can. Nothing is staged, so no size and
no stride needs to be a multiple of anything: the last tile of an axis starts earlier.

The sizes of tiles are those that were fastest on an H200; `benchmarks/NOTES.md` has the
others.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from .._measure import Measure, Planes
from . import _blocks, xla
from ._blocks import struct
from .xla import Matches

OPERATIONS = _blocks.COMMON
# Threads as for the tensor cores' results, 8 × 4 per warp, one number at a time: pairs
# of numbers would have to be aligned.
_LAYOUT = plgpu.Layout.TILED(
    plgpu.Tiling(((64, 8), (16, 8), (8, 8), (2,), (1,))),
    warp_dims=(-8,),
    lane_dims=(-4, -3),
    vector_dim=-1,
)
_load: Any = functools.partial(plgpu.load, optimized=False)
_MATCH = 256, 8
_BACK = 64, 8
_DENSE = 64, 32
# Blocks of threads that a GPU of 132 multiprocessors should have at least: two each
# fit, by their registers; where parts are cheap to add up, more even out the end.
_BLOCKS = 264


def suits() -> bool:
    """Whether the GPUs of this machine are of the right kind, where it has any."""
    try:
        found = jax.devices("cuda")
    except RuntimeError:  # Lowered for another machine, of which nothing is known.
        return True
    # 9 is Hopper, 10 Blackwell; the cards for desktops go by 8 and 12.
    return all(9 <= float(device.compute_capability) < 11 for device in found)


def _kernel(name: str, body: Callable, out: Any, grid: tuple[int, ...]) -> Callable:
    """A kernel of `body(position, *refs)` on a grid of batch, parts and blocks."""

    def placed(*refs: Any) -> None:
        block = jax.lax.axis_index("block")
        part, batch = block // grid[2], block // (grid[1] * grid[2])
        body((batch, part % grid[1], block % grid[2]), *refs)

    # One axis: the others of a launch may not be longer than 65,535.
    return plgpu.kernel(
        placed,
        out_type=out,
        grid=(math.prod(grid),),
        grid_names=("block",),
        kernel_name=name,
    )


def _along(ref: Any, start: Array, size: int, axis: int) -> Array:
    """A part of a plane in the registers of the threads that need it."""
    layout = _LAYOUT.reduce(1 - axis)
    return _load(ref.at[pl.ds(start, size)], layout=layout)


def _store(ref: Any, value: Array) -> None:
    """From registers straight to global memory, in whatever order they hold it."""
    store: Any = getattr(plgpu, "store", None)
    if store is not None:  # From jax 0.12 on, where an assignment asks for more.
        store(ref, value, optimized=False)
    else:
        ref[...] = value


def _wide(plane: Array, tile: tuple[int, int], axis: int) -> Array:
    return jax.lax.broadcast_in_dim(plane, tile, (axis,))


def _boxes(
    ref: Any, count: int, start: Array, tile: tuple[int, int], axis: int
) -> Planes:
    """Planes of boxes over a tile, along its rows (axis 0) or its columns."""
    planes = (_along(ref.at[k], start, tile[axis], axis) for k in range(count))
    return tuple(_wide(p, tile, axis) for p in planes)


def _full(tile: tuple[int, int], value: float, dtype: Any = jnp.float32) -> Array:
    return plgpu.layout_cast(jnp.full(tile, value, dtype), _LAYOUT)


def _place(tile: tuple[int, int], axis: int) -> Array:
    return plgpu.broadcasted_iota(jnp.int32, tile, axis, layout=_LAYOUT)


def _parts(blocks: int, steps: int, wanted: int) -> int:
    """Into how many parts a loop of `steps` is cut, each for a block of its own."""
    wanted = min(steps, max(1, wanted // blocks))
    return math.ceil(steps / math.ceil(steps / wanted))


def pairwise(measure: Measure, planes1: Planes, planes2: Planes) -> Array:
    """`xla.pairwise`, a tile per block of threads."""
    (batch, n), m = planes1[0].shape, planes2[0].shape[1]
    if not batch * n * m:
        return xla.pairwise(measure, planes1, planes2)
    size = max(n, _DENSE[0]), max(m, _DENSE[1])
    blocks, parts = (-(-s // t) for s, t in zip(size, _DENSE, strict=True))
    count = len(planes1)

    def body(position: Any, boxes1: Any, boxes2: Any, out: Any) -> None:
        batch, part, block = position
        starts = _start(block, 0, size, _DENSE), _start(part, 1, size, _DENSE)
        planes = (
            _boxes(boxes.at[batch], count, starts[axis], _DENSE, axis)
            for axis, boxes in enumerate((boxes1, boxes2))
        )
        i, j = (pl.ds(s, t) for s, t in zip(starts, _DENSE, strict=True))
        values = _blocks.values(measure, *planes)
        _store(out.at[batch, i, j], plgpu.layout_cast(values, _LAYOUT))

    out = struct((batch, *size), planes1[0].dtype, planes1[0])
    kernel = _kernel("jaxiou_pairwise", body, out, (batch, parts, blocks))
    boxes = (_blocks.stack(p, s) for p, s in zip((planes1, planes2), size, strict=True))
    return kernel(*boxes)[:, :n, :m]


def _start(
    block: Array, axis: int, size: tuple[int, int], tile: tuple[int, int]
) -> Array:
    """Where a tile begins: the last one early instead of running over the edge."""
    return jnp.minimum(block * tile[axis], size[axis] - tile[axis])


def pairwise_vjp(
    measure: Measure, planes1: Planes, planes2: Planes, cotangent: Array
) -> tuple[Planes, Planes]:
    """`xla.pairwise_vjp`, each side by a kernel that walks along the other one.

    Both evaluate the derivative. In return sums stay in the registers of the thread
    that adds them up, and a side that nobody asks for costs nothing.
    """
    if not cotangent.size:
        return xla.pairwise_vjp(measure, planes1, planes2, cotangent)
    shape = cotangent.shape[1:]
    size = max(shape[0], _BACK[0]), max(shape[1], _BACK[1])
    padding = ((0, 0), *((0, s - x) for s, x in zip(size, shape, strict=True)))
    cotangent = jnp.pad(cotangent, padding)
    boxes = [_blocks.stack(p, s) for p, s in zip((planes1, planes2), size, strict=True)]

    def side(axis: int) -> Planes:
        blocks, steps = (-(-size[a] // _BACK[a]) for a in (axis, 1 - axis))
        batch, count, _ = boxes[axis].shape
        parts = _parts(batch * blocks, steps, 4 * _BLOCKS)
        kernel = _kernel(
            f"jaxiou_pairwise_vjp_{axis + 1}",
            functools.partial(_back, measure, axis, size, -(-steps // parts)),
            struct((batch, parts, count, size[axis]), jnp.float32, cotangent),
            (batch, parts, blocks),
        )
        sums = kernel(*boxes, cotangent).sum(axis=1)
        return tuple(sums[:, k, : shape[axis]] for k in range(count))

    return side(0), side(1)


def _back(
    measure: Measure,
    axis: int,
    size: tuple[int, int],
    steps: int,
    position: Any,
    *refs: Any,
) -> None:
    """One block of threads: some boxes of a side against a part of the other one."""
    batch, part, block = position
    *boxes, cotangent, out = (ref.at[batch] for ref in refs)
    count, other = out.shape[1], 1 - axis
    own = _start(block, axis, size, _BACK)
    mine = _boxes(boxes[axis], count, own, _BACK, axis)
    place = _place(_BACK, other)

    def step(k: Array, totals: Planes) -> Planes:
        start = _start(part * steps + k, other, size, _BACK)
        theirs = _boxes(boxes[other], count, start, _BACK, other)
        ends = (own, start) if axis == 0 else (start, own)
        tile = cotangent.at[
            tuple(pl.ds(s, t) for s, t in zip(ends, _BACK, strict=True))
        ]
        given = _load(tile, layout=_LAYOUT)
        # What a tile that began early shares with its predecessor counts once.
        fresh = place >= (part * steps + k) * _BACK[other] - start
        given = jnp.where(fresh, given, 0)
        pair = (mine, theirs) if axis == 0 else (theirs, mine)
        side = slice(axis, axis + 1)
        over = _blocks.derivative(measure, *pair, given, sides=side)
        return tuple(t + plane for t, plane in zip(totals, over, strict=True))

    start = tuple(_full(_BACK, 0.0) for _ in range(count))
    totals = jax.lax.fori_loop(0, steps, step, start)
    for k, total in enumerate(totals):
        _store(out.at[part, k, pl.ds(own, _BACK[axis])], total.sum(axis=other))


def best_match(
    measure: Measure,
    planes1: Planes,
    planes2: Planes,
    where1: Array,
    where2: Array,
    *,
    ties: bool = False,
) -> Matches:
    """`xla.best_match`: some rows per block of threads, against all or some columns."""
    if not (planes1[0].size and planes2[0].size):
        return xla.best_match(measure, planes1, planes2, where1, where2, ties=ties)
    (batch, n), m = planes1[0].shape, planes2[0].shape[1]
    rows, columns = _MATCH
    blocks, steps = -(-n // rows), -(-m // columns)
    parts = _parts(batch * blocks, steps, _BLOCKS)
    steps = -(-steps // parts)
    size1, size2 = blocks * rows, parts * steps * columns
    boxes1 = _blocks.stack(planes1, size1)
    boxes1 = jnp.concatenate([boxes1, _blocks.thresholds(where1, size1)[:, None]], 1)
    bound2 = _blocks.thresholds(where2, size2)[:, None]
    like, whole = planes1[0], jnp.int32
    over1, over2 = (batch, parts, size1), (batch, blocks, size2)
    kernel = _kernel(
        "jaxiou_best_match",
        functools.partial(_match, measure, len(planes1), steps, ties),
        [
            *(struct(over2, dtype, like) for dtype in (like.dtype, whole)),
            *(struct(over1, dtype, like) for dtype in (like.dtype, whole)),
            *(struct(over1, whole, like) for _ in range(ties)),
        ],
        (batch, parts, blocks),
    )

    def launch(goal: Array) -> tuple[Array, ...]:
        boxes2 = _blocks.stack((*planes2, goal), size2)
        boxes2 = jnp.concatenate([boxes2, bound2], axis=1)
        value2, index2, value1, index1, *tied = kernel(boxes1, boxes2)
        best1, found1 = _blocks.first_best(value1, index1, axis=1)
        best2, found2 = _blocks.first_best(value2, index2, axis=1)
        # Without ties to look for, none is found.
        tied = (tied[0] > 0 if ties else jnp.zeros_like(value1, bool)).any(1)[:, :n]
        return best1[:, :n], found1[:, :n], best2[:, :m], found2[:, :m], tied

    return _blocks.in_rounds(launch, measure, planes2, ties)


def _match(
    measure: Measure, count: int, steps: int, ties: bool, position: Any, *refs: Any
) -> None:
    """One block of threads: `_MATCH[0]` rows against the columns of a part."""
    batch, part, block = position
    boxes1, boxes2 = (ref.at[batch] for ref in refs[:2])
    value2, index2 = (ref.at[batch, block] for ref in refs[2:4])
    value1, index1, *tied1 = (ref.at[batch, part] for ref in refs[4:])
    first = block * _MATCH[0]
    rows, row = pl.ds(first, _MATCH[0]), _place(_MATCH, 0)
    far = jnp.iinfo(jnp.int32).max
    *along_rows, bound1 = _boxes(boxes1, count + 1, first, _MATCH, 0)

    def step(k: Array, best: tuple[Array, ...]) -> tuple[Array, ...]:
        top, place, tied = best
        start = (part * steps + k) * _MATCH[1]
        *along_columns, goal, bound2 = _boxes(boxes2, count + 2, start, _MATCH, 1)
        found = _blocks.values(measure, tuple(along_rows), tuple(along_columns))
        found = jnp.where(found > jnp.maximum(bound1, bound2), found, -jnp.inf)
        if ties:
            tied = jnp.where(found == goal, 1, tied)
        better = found > top
        top = jnp.where(better, found, top)
        place = jnp.where(better, jax.lax.broadcast(start, _MATCH), place)
        best2 = found.max(axis=0)
        where = jnp.where(found == _wide(best2, _MATCH, 1), row, far).min(axis=0)
        _store(value2.at[pl.ds(start, _MATCH[1])], best2)
        _store(index2.at[pl.ds(start, _MATCH[1])], first + where)
        return top, place, tied

    nothing = _full(_MATCH, 0, jnp.int32)
    start = _full(_MATCH, -jnp.inf), nothing, nothing
    top, place, tied = jax.lax.fori_loop(0, steps, step, start)
    best1 = top.max(axis=1)
    place = jnp.where(top == _wide(best1, _MATCH, 0), place + _place(_MATCH, 1), far)
    _store(value1.at[rows], best1)
    _store(index1.at[rows], place.min(axis=1))
    if ties:
        _store(tied1[0].at[rows], tied.max(axis=1))
