"""The specification: what every kernel computes, in plain JAX, for any backend.

Operands come as coordinate planes with one batch axis, `(batch, n)` and `(batch, m)`.
Nothing here is of size n × m except the matrix itself where it is the result: the other
functions walk blocks of rows, small enough to stay in a cache.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._measure import Measure, Planes, is_sharded

# Pairs per block: 256 KiB in float32, a share of one core's second-level cache.
_BLOCK = 1 << 16


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


def _block_rows(batch: int, n: int, m: int) -> int:
    """Rows per block: a multiple of 8 where there are that many."""
    rows = max(1, _BLOCK // max(1, batch * m))
    return min(n, rows if rows < 8 else rows // 8 * 8)


def pairwise(measure: Measure, planes1: Planes, planes2: Planes) -> Array:
    """The matrix `(batch, n, m)`. XLA fuses the formula into its one write."""
    return measure.planes(_rows(planes1), _columns(planes2))


def pairwise_vjp(
    measure: Measure, planes1: Planes, planes2: Planes, cotangent: Array
) -> tuple[Planes, Planes]:
    """Cotangents of the planes; the formula is recomputed block by block."""
    batch, n, m = cotangent.shape
    rows = _block_rows(batch, n, m)
    if not batch * n * m:
        return jax.tree.map(jnp.zeros_like, (planes1, planes2))
    steps = -(-n // rows)
    columns = _columns(planes2)
    # Blocks cannot be cut along an Explicit mesh axis; each device has its rows anyway.
    if steps == 1 or is_sharded(cotangent):
        whole = measure.planes_vjp(_rows(planes1), columns, cotangent)
        return tuple(p[..., 0] for p in whole[0]), tuple(p[..., 0, :] for p in whole[1])

    # Checkpointed: a derivative of this derivative recomputes the block again.
    @jax.checkpoint
    def body(total: Planes, start: Array) -> tuple[Planes, Planes]:
        # The last block starts early instead of running over the edge: no padded copy
        # of the cotangent, rows it shares with its predecessor count once.
        first = jnp.minimum(start, n - rows)

        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, first, rows, axis=1)

        fresh = first + jnp.arange(rows) >= start
        block = jnp.where(fresh[None, :, None], cut(cotangent), 0)
        over_rows = _rows(tuple(cut(p) for p in planes1))
        rows_grad, columns_grad = measure.planes_vjp(over_rows, columns, block)
        return jax.tree.map(jnp.add, total, columns_grad), rows_grad

    zeros = jax.tree.map(jnp.zeros_like, columns)
    starts = jnp.arange(steps, dtype=jnp.int32) * rows
    columns_grad, blocks = jax.lax.scan(body, zeros, starts)

    def assemble(block: Array) -> Array:
        """To (batch, n), less the rows that the last step repeats."""
        block = jnp.moveaxis(block[..., 0], 1, 0)
        head = block[:, :-1].reshape(batch, (steps - 1) * rows)
        tail = block[:, -1, steps * rows - n :]
        return jnp.concatenate([head, tail], axis=1)

    return (
        tuple(assemble(b) for b in blocks),
        tuple(p[..., 0, :] for p in columns_grad),
    )


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
    dtype = jnp.result_type(planes1[0], planes2[0])
    nothing = Matches(
        jnp.full((batch, n), -jnp.inf, dtype),
        jnp.full((batch, n), -1, jnp.int32),
        jnp.full((batch, m), -jnp.inf, dtype),
        jnp.full((batch, m), -1, jnp.int32),
        jnp.zeros((batch, n), bool),
    )
    if not batch * n * m:
        return nothing
    rows = _block_rows(batch, n, m)
    steps = -(-n // rows)
    columns = _columns(planes2)
    column_ids = jnp.arange(m, dtype=jnp.int32)[None, None, :]

    def blocks(x: Array) -> Array:
        """(batch, n) to (steps, batch, rows), padded with zeros, that is with False."""
        x = jnp.pad(x, ((0, 0), (0, steps * rows - n)))
        return jnp.moveaxis(x.reshape(batch, steps, rows), 1, 0)

    def body(best: tuple[Array, Array], block: Any) -> tuple[tuple[Array, Array], Any]:
        planes, mask, start = block
        values2, indices2 = best
        values = measure.planes(_rows(planes), columns)
        allowed = mask[:, :, None] & where2[:, None, :] & ~jnp.isnan(values)
        # The barrier makes all readers below see the same bits: fused into each of
        # them, the formula would be contracted differently and equality would fail.
        values = jax.lax.optimization_barrier(jnp.where(allowed, values, -jnp.inf))
        row_best = values.max(axis=2)
        row_index = jnp.where(values == row_best[:, :, None], column_ids, m).min(axis=2)
        column_best = values.max(axis=1)
        row_ids = start + jnp.arange(rows, dtype=jnp.int32)[None, :, None]
        hit = values == column_best[:, None, :]
        column_index = jnp.where(hit, row_ids, steps * rows).min(axis=1)
        better = column_best > values2
        if ties:
            claims = values2 > measure.minimum
            tied = ((values == values2[:, None, :]) & claims[:, None, :]).any(axis=2)
        else:
            tied = jnp.zeros_like(mask)
        best = (
            jnp.where(better, column_best, values2),
            jnp.where(better, column_index, indices2),
        )
        return best, (row_best, row_index, tied)

    starts = jnp.arange(steps, dtype=jnp.int32) * rows
    xs = (tuple(blocks(p) for p in planes1), blocks(where1), starts)
    if ties:
        xs = jax.tree.map(lambda x: jnp.concatenate([x, x]), xs)
    best, per_row = jax.lax.scan(body, (nothing.values2, nothing.indices2), xs)

    def rows_of(x: Array) -> Array:
        return jnp.moveaxis(x[-steps:], 0, 1).reshape(batch, steps * rows)[:, :n]

    values1, indices1, tied1 = (rows_of(x) for x in per_row)
    indices1 = jnp.where(values1 == -jnp.inf, -1, indices1)
    return Matches(values1, indices1, *best, tied1)
