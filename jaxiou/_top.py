"""The best k rows of every column of a matrix that is never written.

Memory is O(columns × k) and one block: blocks of rows are walked with the best k so far
carried along, a few columns at a time. Most blocks hold nothing better than that and
are compared only.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._loops import varying

# Columns at a time, and pairs per block: what a second-level cache holds.
_COLUMNS = 32
_PAIRS = 1 << 17


def top(
    values: Callable[[Any, Any], Array],
    rows: Any,
    columns: Any,
    where_rows: Array,
    where_columns: Array,
    k: int,
) -> tuple[Float[Array, "m k"], Int[Array, "m k"]]:
    """Values by falling size and the rows they belong to, the lower row at ties.

    `rows` is a tree of arrays `(n, ...)`, `columns` one of arrays `(m, ...)`;
    `values(rows, columns)` of b and c of them is `(c, b)`. What is left out by a mask
    and what is NaN or -inf is no row: -inf and -1 fill the slots that stay empty.
    """
    n, m = where_rows.size, where_columns.size
    inputs = (*jax.tree.leaves((rows, columns)), where_rows, where_columns)
    dtype = jax.eval_shape(values, rows, columns).dtype
    if not n * m * k:
        return jnp.full((m, k), -jnp.inf, dtype), jnp.full((m, k), -1, jnp.int32)
    count, height = min(k, n), min(m, _COLUMNS)
    width = min(n, max(_PAIRS // height, count))

    def tile(_: None, first: Array) -> tuple[None, Any]:
        these, real = _cut((columns, where_columns), _start(first, height, m), height)

        def step(best: Any, first: Array) -> tuple[Any, None]:
            start = _start(first, width, n)
            some, keep = _cut((rows, where_rows), start, width)
            # Rows that the last block shares with its predecessor count once.
            keep &= start + jnp.arange(width, dtype=jnp.int32) >= first
            keep = real[:, None] & keep[None, :]

            def block(*_: Any) -> Array:
                found = values(some, these)
                # In the order of all floats, which top_k may use, -0 is below 0.
                found = jnp.where(found == 0, 0, found)
                return jnp.where(keep & (found > -jnp.inf), found, -jnp.inf)

            # A loop of one round, none for a block of padding: fused into both of its
            # readers the formula would be evaluated twice, to different bits perhaps.
            nothing = varying(jnp.full((height, width), -jnp.inf, dtype), inputs)
            rounds = keep.any().astype(jnp.int32)
            found = jax.lax.fori_loop(0, rounds, block, nothing)
            better = (found > best[0][:, -1:]).any()
            merged = functools.partial(_merged, best, found, start)
            return jax.lax.cond(better, merged, lambda: best), None

        empty = jnp.full((height, count), -jnp.inf, dtype)
        nobody = empty, jnp.full(empty.shape, -1, jnp.int32)
        firsts = width * jnp.arange(-(-n // width), dtype=jnp.int32)
        return None, jax.lax.scan(step, varying(nobody, inputs), firsts)[0]

    firsts = height * jnp.arange(-(-m // height), dtype=jnp.int32)
    tiles = jax.lax.scan(tile, None, firsts)[1]
    best, index = (_assembled(x, m) for x in tiles)
    padding = (0, 0), (0, k - count)
    return (
        jnp.pad(best, padding, constant_values=-jnp.inf),
        jnp.pad(jnp.where(best > -jnp.inf, index, -1), padding, constant_values=-1),
    )


def _start(first: Array, size: int, total: int) -> Array:
    """Where a block begins: the last one early, in place of running over the edge."""
    return jnp.minimum(first, total - size)


def _cut(tree: Any, start: Array, size: int) -> Any:
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=0), tree
    )


def _merged(
    best: tuple[Array, Array], found: Array, start: Array
) -> tuple[Array, Array]:
    """The best of those so far and of a block that begins at row `start`."""
    count = best[0].shape[1]
    fresh, place = jax.lax.top_k(found, count)
    # Those so far come first: at ties they stay, and their rows are the lower ones.
    both = jnp.concatenate([best[0], fresh], axis=1)
    rows = jnp.concatenate([best[1], start + place.astype(jnp.int32)], axis=1)
    most, place = jax.lax.top_k(both, count)
    return most, jnp.take_along_axis(rows, place, axis=1)


def _assembled(tiles: Array, m: int) -> Array:
    """`(tiles, height, k)` to `(m, k)`, less what the last tile repeats."""
    count, height, k = tiles.shape
    head = tiles[:-1].reshape((count - 1) * height, k)
    return jnp.concatenate([head, tiles[-1, count * height - m :]])


def shared_out(chosen: Array, worth: Array, n: int) -> Array:
    """`(n,)`: of the targets that chose an anchor that of most worth, -1 of none.

    `chosen` and `worth` are `(m, k)`, -1 for no anchor.
    """
    m, nowhere = chosen.shape[0], n
    place = jnp.where((chosen >= 0) & ~jnp.isnan(worth), chosen, nowhere)
    most = jnp.full((n + 1,), -jnp.inf, worth.dtype).at[place].max(worth)
    wins = worth == most[place]
    target = jnp.broadcast_to(jnp.arange(m, dtype=jnp.int32)[:, None], place.shape)
    place = jnp.where(wins, place, nowhere)
    first = jnp.full((n + 1,), m, jnp.int32).at[place].min(target)[:n]
    return jnp.where(first < m, first, -1)


def most(values: Array, index: Array, m: int) -> Array:
    """`(n,)`: the largest value of all anchors of an anchor's target, 0 of none."""
    place = jnp.where(index >= 0, index, m)
    most = jnp.zeros((m + 1,), values.dtype).at[place].max(values)
    return jnp.where(index >= 0, most[place], 0)
