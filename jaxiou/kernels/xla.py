"""The specification: what every kernel computes, in plain JAX, for any backend.

Operands come as coordinate planes with one batch axis, `(batch, n)` and `(batch, m)`.
Nothing here is of size n × m except the matrix itself where it is the result: the other
functions walk blocks of rows, small enough to stay in a cache.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._checks import is_sharded
from .._loops import each_image, together, varying
from .._measure import Measure, Planes

int32 = jnp.int32

# Pairs per block: 512 KiB in float32, what fits the second-level caches of two cores.
_BLOCK = 1 << 17
# An accelerator starts programs for every block: as few as 64 MiB each allow.
_ACCELERATED = 1 << 24
# Strips that a block is folded into before a reduction, see `_best`.
_STRIPS = 16


class Matches(NamedTuple):
    """Best partners of both sides; `tied1` marks rows that are some column's best."""

    values1: Float[Array, "batch n"]
    indices1: Int[Array, "batch n"]
    values2: Float[Array, "batch m"]
    indices2: Int[Array, "batch m"]
    tied1: Bool[Array, "batch n"]


def _rows(planes: Planes) -> Planes:
    return tuple(p[..., :, None] for p in planes)


def _columns(planes: Planes) -> Planes:
    return tuple(p[..., None, :] for p in planes)


def _gradient_rows(pairs: int, batch: int, n: int, m: int) -> int:
    """Rows per block of the derivative, which writes eight numbers per pair."""
    rows = max(1, pairs // max(1, 8 * batch * m))
    return min(n, rows if rows < 8 else rows // 8 * 8)


def pairwise(measure: Measure, planes1: Planes, planes2: Planes) -> Array:
    """The matrix `(batch, n, m)`. XLA fuses the formula into its one write."""
    columns = _columns(tuple(_settled(p) for p in planes2))
    return measure.planes(_rows(planes1), columns)


def _settled(plane: Array) -> Array:
    """The same plane, written to memory by XLA on its own.

    Otherwise the inner loop over the matrix fetches every fourth number of the boxes
    and clips it once per pair: four times slower on a CPU. A barrier does not prevent
    that, it is gone before XLA fuses; a sum, be it of the plane and zero, is not fused.
    """
    first = jnp.array([True, False]).reshape(2, *(1,) * plane.ndim)
    return jnp.where(first, plane[None], 0).sum(axis=0)


def pairwise_vjp(
    measure: Measure, planes1: Planes, planes2: Planes, cotangent: Array
) -> tuple[Planes, Planes]:
    """Cotangents of the planes; the formula is recomputed block by block."""
    batch, n, m = cotangent.shape
    if not batch * n * m:
        return jax.tree.map(jnp.zeros_like, (planes1, planes2))
    # Blocks cannot be cut along an Explicit mesh axis; each device has its rows anyway.
    if is_sharded(cotangent):
        columns = _columns(planes2)
        whole = measure.planes_vjp(_rows(planes1), columns, cotangent)
        return tuple(p[..., 0] for p in whole[0]), tuple(p[..., 0, :] for p in whole[1])

    def walk(pairs: int, *args: Any) -> tuple[Planes, Planes]:
        return _vjp_by_blocks(measure, _gradient_rows(pairs, batch, n, m), *args)

    return jax.lax.platform_dependent(
        planes1,
        planes2,
        cotangent,
        cpu=functools.partial(walk, _BLOCK),
        default=functools.partial(walk, _ACCELERATED),
    )


def _vjp_by_blocks(
    measure: Measure, rows: int, planes1: Planes, planes2: Planes, cotangent: Array
) -> tuple[Planes, Planes]:
    batch, n, _ = cotangent.shape
    steps, columns = -(-n // rows), _columns(planes2)

    # Checkpointed: a derivative of this derivative recomputes the block again.
    @jax.checkpoint
    def block_vjp(planes1: Planes, block: Array) -> tuple[Planes, Planes]:
        over_columns, over_rows = together(
            measure.pairs_vjp(_rows(planes1), columns, block, together=together)
        )
        return tuple(g.sum(2) for g in over_columns), tuple(g.sum(1) for g in over_rows)

    if steps == 1:
        return block_vjp(planes1, cotangent)

    def body(total: Planes, start: Array) -> tuple[Planes, Planes]:
        # The last block starts early instead of running over the edge: no padded copy
        # of the cotangent, rows it shares with its predecessor count once.
        first = jnp.minimum(start, n - rows)

        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, first, rows, axis=1)

        fresh = first + jnp.arange(rows) >= start
        block = jnp.where(fresh[None, :, None], cut(cotangent), 0)
        rows_grad, columns_grad = block_vjp(tuple(cut(p) for p in planes1), block)
        return jax.tree.map(jnp.add, total, columns_grad), rows_grad

    zeros = varying(
        jax.tree.map(jnp.zeros_like, planes2), (*planes1, *planes2, cotangent)
    )
    starts = jnp.arange(steps, dtype=jnp.int32) * rows
    columns_grad, blocks = jax.lax.scan(body, zeros, starts)

    def assemble(block: Array) -> Array:
        """To (batch, n), less the rows that the last step repeats."""
        block = jnp.moveaxis(block, 1, 0)
        head = block[:, :-1].reshape(batch, (steps - 1) * rows)
        tail = block[:, -1, steps * rows - n :]
        return jnp.concatenate([head, tail], axis=1)

    return tuple(assemble(b) for b in blocks), columns_grad


def best_match(
    measure: Measure,
    planes1: Planes,
    planes2: Planes,
    where1: Array,
    where2: Array,
    *,
    ties: bool = False,
) -> Matches:
    """Best partner for every box of both sides, lowest index at ties.

    With `ties`, the blocks are walked a second time through the same body, now against
    the final column maxima: two differently compiled programs differ by an ulp, one
    program run twice does not, so the comparison finds exactly the rows that attain
    the best value of some column which is above the measure's minimum.
    """
    (batch, n), m = planes1[0].shape, planes2[0].shape[1]
    if not batch * n * m:
        dtype = jnp.result_type(planes1[0], planes2[0])
        return Matches(
            jnp.full((batch, n), -jnp.inf, dtype),
            jnp.full((batch, n), -1, jnp.int32),
            jnp.full((batch, m), -jnp.inf, dtype),
            jnp.full((batch, m), -1, jnp.int32),
            jnp.zeros((batch, n), bool),
        )

    def one(pairs: int, _: None, *image: Any) -> tuple[Array, ...]:
        return _match_one(measure, pairs, *image, ties=ties)

    # Of a symbolic number, in `jax.export`, nothing is known.
    pairs = max(_BLOCK, _ACCELERATED // batch) if isinstance(batch, int) else _BLOCK
    found = each_image(
        functools.partial(one, _BLOCK),
        None,
        (planes1, planes2, where1, where2),
        accelerated=functools.partial(one, pairs),
    )
    return Matches(*found)


def _match_one(
    measure: Measure,
    pairs: int,
    planes1: Planes,
    planes2: Planes,
    where1: Array,
    where2: Array,
    *,
    ties: bool,
) -> tuple[Array, ...]:
    """`best_match` of one image, planes `(n,)` and `(m,)`, in blocks of some pairs."""
    n, m = planes1[0].size, planes2[0].size
    rows, width = _block_shape(pairs, n, m)
    steps, dtype = -(-n // rows), jnp.result_type(planes1[0], planes2[0])
    block = _blocks(measure, (rows, width), planes1, planes2, where1, where2)

    def first_pass(best: Planes, found: Array, step: Array) -> tuple[Planes, Planes]:
        row_best, row_index = _best(found, 1)
        column_best, column_index = _best(found, 0)
        better = column_best > best[0]
        new = (
            jnp.where(better, column_best, best[0]),
            jnp.where(better, step * rows + column_index, best[1]),
        )
        return new, (row_best, row_index, jnp.zeros_like(row_best, bool))

    def second_pass(best: Planes, found: Array, step: Array) -> tuple[Planes, Planes]:
        tied = _attains(found, best[0], measure.minimum)
        return best, (jnp.zeros_like(tied, dtype), jnp.zeros_like(tied, int32), tied)

    def body(best: Planes, x: tuple[Array, Array]) -> tuple[Planes, Planes]:
        step, second = x
        operands = best, block(step), step
        if not ties:
            return first_pass(*operands)
        return jax.lax.cond(second, second_pass, first_pass, *operands)

    passes = 2 if ties else 1
    xs = (
        jnp.tile(jnp.arange(steps, dtype=int32), passes),
        jnp.arange(passes * steps) >= steps,
    )
    start = jnp.full((width,), -jnp.inf, dtype), jnp.full((width,), -1, int32)
    inputs = (*planes1, *planes2, where1, where2)
    best, per_row = jax.lax.scan(body, varying(start, inputs), xs)
    values1, indices1 = (x[:steps].reshape(-1)[:n] for x in per_row[:2])
    indices1 = jnp.where(values1 == -jnp.inf, -1, indices1)
    tied = per_row[2][-steps:].reshape(-1)[:n]
    return values1, indices1, best[0][:m], best[1][:m], tied


def _block_shape(pairs: int, n: int, m: int) -> tuple[int, int]:
    """Rows and columns of a block of the matrix, padding of both included."""
    # Columns in strips of whole vectors: a loop's remainder runs number by number.
    width = m if m < 8 else _padded(m, 8 * -(-m // (8 * _STRIPS)))
    rows = max(1, pairs // width)
    rows = rows if rows < _STRIPS else rows - rows % _STRIPS
    return min(rows, n if n < _STRIPS else _padded(n, _STRIPS)), width


def _blocks(
    measure: Measure,
    shape: tuple[int, int],
    planes1: Planes,
    planes2: Planes,
    where1: Array,
    where2: Array,
) -> Callable[[Array], Array]:
    """Gives the block of a step: some rows, all columns, -inf where a mask is False."""
    rows, width = shape
    dtype = jnp.result_type(planes1[0], planes2[0])

    def cut(x: Array) -> Array:
        """Row by row of blocks, filled up with zeros, that is with False."""
        return jnp.pad(x, (0, -x.size % rows)).reshape(-1, rows)

    def fill(x: Array) -> Array:
        return jnp.pad(x, (0, width - x.size))[None, :]

    columns = tuple(fill(p) for p in planes2)
    planes, masks = tuple(cut(p) for p in planes1), cut(where1)
    # Added to the values: NaN stays NaN and wins nothing, -inf wins nothing either.
    penalty1 = jnp.where(masks, 0, -jnp.inf).astype(dtype)
    penalty2 = jnp.where(fill(where2), 0, -jnp.inf).astype(dtype)

    def values(step: Array, _: Array) -> Array:
        out = measure.planes(tuple(p[step][:, None] for p in planes), columns)
        return out + (penalty1[step][:, None] + penalty2)

    def block(step: Array) -> Array:
        # A loop of one round makes all readers see the same bits: fused into each of
        # them, the formula could be contracted differently and equality would fail.
        # (A barrier is gone by the time XLA fuses.) Blocks of padding are no round.
        nothing = jnp.full((rows, width), -jnp.inf, dtype)
        nothing = varying(nothing, (*planes1, *planes2, where1, where2))
        stop = step + masks[step].any().astype(int32)
        return jax.lax.fori_loop(step, stop, values, nothing)

    return block


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _strips(block: Array, axis: int) -> list[Array]:
    """A block cut along an axis into equal strips, of whole vectors if possible."""
    size = block.shape[axis]
    count = next(
        k for unit in (8, 1) for k in range(_STRIPS, 0, -1) if size % (k * unit) == 0
    )
    return jnp.split(block, count, axis)


def _best(block: Array, axis: int) -> tuple[Array, Array]:
    """Maximum and first argmax along an axis; NaN never wins.

    A reduction reads number by number. Laid over each other, the strips are compared
    element by element, which is vectorised, and one strip is left to reduce.
    """
    strips = _strips(block, axis)
    size, width = block.shape[axis], strips[0].shape[axis]
    top = jnp.full(strips[0].shape, -jnp.inf, block.dtype)
    for strip in strips:
        top = jnp.where(strip > top, strip, top)
    best = top.max(axis=axis, keepdims=True)
    # Whole numbers in a float: XLA reduces those faster than integers.
    kind = jnp.float32 if size < 1 << 24 else jnp.int32
    index = jnp.full(top.shape, len(strips), kind)
    for k, strip in reversed(list(enumerate(strips))):
        index = jnp.where(strip == best, k, index)
    index = index * width + jax.lax.broadcasted_iota(kind, top.shape, axis)
    return best.squeeze(axis), index.min(axis=axis).astype(jnp.int32)


def _attains(block: Array, best: Array, minimum: float) -> Array:
    """The rows of a block that hold the best value of a column, one above `minimum`."""
    target = jnp.where(best > minimum, best, jnp.nan)[None, :]  # NaN equals nothing
    pairs = zip(_strips(block, 1), _strips(target, 1), strict=True)
    hits = [strip == wanted for strip, wanted in pairs]
    return functools.reduce(jnp.logical_or, hits).any(axis=1)
