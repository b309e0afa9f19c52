"""Implementations of the matrix and its reductions, and the choice between them.

Every implementation is a module with the functions of `xla`, which is the specification
and runs anywhere. A kernel has in addition the platform it is for and the names of the
operations that its compiler knows.

What runs is chosen when a program is lowered: only then are the platform and the number
of devices known. So a call becomes one operation of the program, and its lowering, on
each platform, is either the kernel or what `xla` does. A kernel knows nothing of other
devices, so it takes one device or the inside of a `shard_map`; anything else XLA
partitions.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from .._checks import is_sharded
from .._loops import varying
from .._measure import Measure, Planes
from . import xla
from .xla import Matches

# Name: the platforms it is lowered for.
_KERNELS = {"mosaic_gpu": "cuda", "mosaic_tpu": "tpu"}
IMPLEMENTATIONS = ("xla", *_KERNELS)
_NEW_ENOUGH = tuple(int(part) for part in jax.__version__.split(".")[:2]) >= (0, 11)
# XLA writes a matrix at the speed of memory: a kernel of ours does so by name only.
_BY_NAME_ONLY = ("pairwise",)


def pick(function: str, implementation: str | None) -> "Choice":
    """The named implementation, or the fastest one that runs where the program does."""
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"jaxiou.{function}: `implementation` is {implementation!r}, wanted None "
            f"(the fastest that runs here) or one of {sorted(IMPLEMENTATIONS)}."
        )
    return Choice(function, implementation)


@dataclass(frozen=True)
class Choice:
    """The functions of an implementation: the named one, or the fastest that runs."""

    caller: str
    implementation: str | None

    def pairwise(self, measure: Measure, planes1: Planes, planes2: Planes) -> Array:
        """`xla.pairwise`."""
        return self._call("pairwise", measure, planes1, planes2)

    def pairwise_vjp(
        self, measure: Measure, planes1: Planes, planes2: Planes, cotangent: Array
    ) -> tuple[Planes, Planes]:
        """`xla.pairwise_vjp`."""
        return self._call("pairwise_vjp", measure, planes1, planes2, cotangent)

    def best_match(
        self,
        measure: Measure,
        planes1: Planes,
        planes2: Planes,
        where1: Array,
        where2: Array,
        *,
        ties: bool = False,
    ) -> Matches:
        """`xla.best_match`."""
        arrays = planes1, planes2, where1, where2
        return self._call("best_match", measure, *arrays, ties=ties)

    def _call(self, function: str, measure: Measure, *args: Any, **options: Any) -> Any:
        plain = functools.partial(getattr(xla, function), measure, **options)
        if self.implementation == "xla":
            return plain(*args)
        leaves, structure = jax.tree.flatten(args)
        kernels = []
        for name in _KERNELS if self.implementation is None else [self.implementation]:
            reason = _refusal(name, function, measure, leaves)
            if not reason:
                kernels.append(name)
            elif self.implementation is not None:
                raise NotImplementedError(f"jaxiou.{self.caller}: {reason}")
        named = self.implementation is not None
        # Blocks of a kernel are counted, which symbolic sizes of `jax.export` are not.
        sizes = [size for x in leaves for size in x.shape]
        symbolic = not all(isinstance(size, int) for size in sizes)
        by_name_only = symbolic or function in _BY_NAME_ONLY
        if not kernels or (by_name_only and not named):
            return plain(*args)
        call = _Call(function, measure, tuple(options.items()), structure, named)
        leaves = [varying(x, leaves) for x in leaves]
        results = _kernel.bind(*leaves, call=call, kernels=tuple(kernels))
        return jax.tree.unflatten(call.output(*leaves)[1], results)


def _refusal(name: str, function: str, measure: Measure, leaves: list[Array]) -> str:
    """Why a kernel cannot serve a call; empty where it can."""
    if not _NEW_ENOUGH:
        return f"the {name} kernels need jax 0.11 or newer, this is {jax.__version__}."
    if any(x.dtype == jnp.float64 for x in leaves):
        return f"the {name} kernels compute in float32, the boxes are float64."
    if any(is_sharded(x) for x in leaves):
        return (
            f"the {name} kernels run on one device, and the type of an argument "
            "shards it; call this inside of `jax.shard_map`."
        )
    return _unknown(name, function, measure)


@functools.cache
def _unknown(name: str, function: str, measure: Measure) -> str:
    """What a formula needs and the compiler of a kernel does not know."""
    from . import _blocks

    known = _module(name).OPERATIONS
    needed = _blocks.operations(measure, backward=False)
    if function == "pairwise_vjp":
        needed = _blocks.operations(measure, backward=True)
    missing = sorted(needed - known)
    if not missing:
        return ""
    return f"{name} has no {', '.join(missing)}, which {measure!r} needs."


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", __name__)


@dataclass(frozen=True)
class _Call:
    """A call of one of the functions of an implementation on flat operands."""

    function: str
    measure: Measure
    options: tuple[tuple[str, Any], ...]
    structure: Any
    named: bool

    def by(self, module: ModuleType) -> Callable[..., list[Array]]:
        """The call, served by an implementation."""
        function = getattr(module, self.function)

        def run(*leaves: Array) -> list[Array]:
            args = jax.tree.unflatten(self.structure, leaves)
            return jax.tree.leaves(function(self.measure, *args, **dict(self.options)))

        return run

    def output(self, *leaves: Any) -> tuple[list[tuple[Any, ...]], Any]:
        """Shapes and dtypes of the results, and how they hang together."""
        planes1, planes2, *_ = jax.tree.unflatten(self.structure, leaves)
        (batch, n), m, dtype = planes1[0].shape, planes2[0].shape[1], planes1[0].dtype
        like = jax.tree.structure((planes1, planes2))
        if self.function == "pairwise":
            return [((batch, n, m), dtype)], jax.tree.structure(0)
        if self.function == "pairwise_vjp":
            planes = jax.tree.leaves((planes1, planes2))
            return [(p.shape, p.dtype) for p in planes], like
        whole = jnp.dtype("int32")
        shapes = [
            ((batch, n), dtype),
            ((batch, n), whole),
            ((batch, m), dtype),
            ((batch, m), whole),
            ((batch, n), jnp.dtype("bool")),
        ]
        return shapes, jax.tree.structure(Matches(*range(5)))


_kernel = Primitive("jaxiou_kernel")
_kernel.multiple_results = True


@_kernel.def_abstract_eval
def _types(*leaves: Any, call: _Call, kernels: tuple[str, ...]) -> list[Any]:
    def one(shape: tuple[int, ...], dtype: Any) -> Any:
        # Not sharded, but maybe of a mesh: a type with as many axes as the result.
        sharding = leaves[0].sharding.update(
            spec=jax.sharding.PartitionSpec(*(None,) * len(shape))
        )
        return leaves[0].update(
            shape=shape, dtype=dtype, weak_type=False, sharding=sharding
        )

    return [one(*shape) for shape in call.output(*leaves)[0]]


@functools.cache
def _compiled(call: _Call, kernels: tuple[str, ...]) -> Callable[..., list[Array]]:
    return jax.jit(functools.partial(_kernel.bind, call=call, kernels=kernels))


@_kernel.def_impl
def _run(*leaves: Array, call: _Call, kernels: tuple[str, ...]) -> list[Array]:
    by_hand = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    if by_hand and not call.named:
        return call.by(xla)(*leaves)  # one operation at a time, as asked for
    with jax.disable_jit(False):  # A kernel exists in a compiled program only.
        return _compiled(call, kernels)(*leaves)


def _lower(platform: str | None, context: Any, *operands: Any, **static: Any) -> Any:
    """The kernel where it may run alone, else what `xla` does."""
    call, kernels = static["call"], static["kernels"]
    names = [name for name in kernels if _KERNELS[name] == platform]
    alone = _runs_alone(context.module_context.axis_context)
    module = xla
    if names and alone and _module(names[0]).suits():
        module = _module(names[0])
    elif call.named:
        raise NotImplementedError(
            f"jaxiou: the {kernels[0]} kernels run on one device; call this inside of "
            "`jax.shard_map`, with all axes of the mesh."
            if names and not alone
            else f"jaxiou: the {kernels[0]} kernels run on {_KERNELS[kernels[0]]!r} "
            "alone, not on any kind of it; leave `implementation` out for the fastest "
            "that runs on each."
        )
    return mlir.lower_fun(call.by(module), multiple_results=True)(context, *operands)


def _runs_alone(context: Any) -> bool:
    """Whether a program is for one device, or is one device's part of a larger one."""
    if isinstance(context, mlir.SPMDAxisContext):
        manual = set(context.manual_axes) | set(context.mesh.manual_axes)
        return manual == set(context.mesh.axis_names)
    return getattr(context, "num_devices", 1) == 1


for _platform in ("tpu", "cuda", None):
    mlir.register_lowering(
        _kernel, functools.partial(_lower, _platform), platform=_platform
    )


def _derivative(primals: Any, tangents: Any, *, call: _Call, **_: Any) -> Any:
    """Derivatives of a kernel are those of `xla`."""
    whole = tuple(ad.instantiate_zeros(x) for x in tangents)
    return jax.jvp(call.by(xla), tuple(primals), whole)


ad.primitive_jvps[_kernel] = _derivative


def _batch(
    leaves: Any, axes: Any, *, call: _Call, kernels: tuple[str, ...]
) -> tuple[list[Array], list[int]]:
    """One more axis joins the one that every operand has."""
    size = next(
        x.shape[axis] for x, axis in zip(leaves, axes, strict=True) if axis is not None
    )

    def whole(x: Array, axis: int | None) -> Array:
        if axis is None:
            return jnp.broadcast_to(x, (size, *x.shape))
        return jnp.moveaxis(x, axis, 0)

    full = [whole(x, axis) for x, axis in zip(leaves, axes, strict=True)]
    joined = [x.reshape(size * x.shape[1], *x.shape[2:]) for x in full]
    results = _kernel.bind(*joined, call=call, kernels=kernels)
    batch = full[0].shape[1]
    return [x.reshape(size, batch, *x.shape[1:]) for x in results], [0] * len(results)


batching.primitive_batchers[_kernel] = _batch

if _NEW_ENOUGH:
    # Importing Pallas adds to what JAX tells traces apart by. Within a trace that would
    # have the program that is traced first compiled twice.
    for _name in _KERNELS:
        _module(_name)
