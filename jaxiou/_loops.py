"""Loops over images and pairs: on the axes of a mesh, on a CPU, on an accelerator."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import _checks


def replicate(array: Array, *, keep: int = 0) -> Array:
    """Gathers all but the first `keep` axes where a mesh has Explicit axes.

    Sorting, scattering and walking blocks along a sharded axis have no sharding rule
    there. Coordinates are O(n): gathering them is cheap, unlike a matrix.
    """
    if not _checks.is_sharded(array, start=keep):
        return array
    spec = jax.typeof(array).sharding.spec
    kept = jax.sharding.PartitionSpec(*spec[:keep], *(None,) * (array.ndim - keep))
    return jax.sharding.reshard(array, kept)


def varying(tree: Any, arrays: Iterable[Array]) -> Any:
    """Arrays typed like others: varying over the same axes inside of `shard_map`.

    What a loop carries must have one type in every round, so a constant it begins with
    gets the type of what it is replaced by.
    """

    def axes(array: Array) -> frozenset[str]:
        return jax.typeof(array).manual_axis_type.varying

    wanted: frozenset[str] = frozenset().union(*(axes(array) for array in arrays))

    def one(array: Array) -> Array:
        missing = tuple(wanted - axes(array))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(one, tree)


def each_image(
    one: Callable[..., Any],
    shared: Any,
    arrays: Sequence[Any],
    *,
    accelerated: Callable[..., Any] | None = None,
) -> Any:
    """`one(shared, *image)` for every image, the first axis of all arrays.

    A loop under vmap goes on for every image until the last one is done. Without an
    accelerator to fill it is faster to take them one by one, and in less memory. What
    an accelerator does may be another function with the same results.
    """

    def images(one: Callable[..., Any], shared: Any, *arrays: Any) -> Any:
        # A batch of one skips vmap, under which every branch of a loop is executed.
        if jax.tree.leaves(arrays)[0].shape[0] == 1:
            first = jax.tree.map(lambda x: x[0], arrays)
            return jax.tree.map(lambda x: x[None], one(shared, *first))
        return jax.vmap(one, in_axes=(None, *(0 for _ in arrays)))(shared, *arrays)

    return jax.lax.platform_dependent(
        shared,
        *arrays,
        cpu=functools.partial(images, jax.custom_batching.sequential_vmap(one)),
        default=functools.partial(images, accelerated or one),
    )


@jax.custom_jvp
def together(planes: Any) -> Any:
    """The same planes, all written by one loop that computes what they share once.

    XLA makes a loop of its own for every array that several others read. Only a
    reduction has more than one result on a CPU, so it is one: over an axis of length
    two, the second half of which is zero.
    """
    leaves, tree = jax.tree.flatten(planes)
    shape = jnp.broadcast_shapes(*(p.shape for p in leaves))
    # Of a closed form's own making may be planes of one side, and masks.
    pairs = [p.shape == shape and jnp.issubdtype(p.dtype, jnp.floating) for p in leaves]
    written = iter(
        jax.lax.platform_dependent(
            [p for p, pair in zip(leaves, pairs, strict=True) if pair],
            cpu=_one_loop,
            default=lambda planes: planes,
        )
    )
    leaves = [
        next(written) if pair else p for p, pair in zip(leaves, pairs, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)


def _one_loop(planes: list[Array]) -> list[Array]:
    if not planes:
        return planes
    first = jnp.array([True, False]).reshape(2, *(1,) * planes[0].ndim)
    halves = [jnp.where(first, p[None], 0) for p in planes]
    zeros = [jnp.zeros((), p.dtype) for p in planes]
    return list(jax.lax.reduce(halves, zeros, _add, (0,)))


@together.defjvp
def _together_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    return together(*primals), tangents[0]


def _add(x: Sequence[Array], y: Sequence[Array]) -> list[Array]:
    return [p + q for p, q in zip(x, y, strict=True)]
