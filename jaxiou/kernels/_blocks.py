"""What the kernels of all accelerators share: formulas as flat lists of operations.

A kernel evaluates a measure's formula, or its derivative, on blocks of planes. The
formula is traced like any other function and its calls are written out, so that only
elementwise operations are left for the backend, and those can be looked up beforehand.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

from .._measure import Measure, Planes
from .xla import Matches

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_TYPES = ("float32", "int32", "bool")


def names(text: str) -> frozenset[str]:
    """Words as a set."""
    return frozenset(text.split())


# Operations that every kernel compiler knows.
COMMON = names(
    "abs add and broadcast_in_dim clamp convert_element_type copy copy_p cos div eq "
    "exp exp2 ge gt le log lt max min mul ne neg or round rsqrt select_n "
    "sin sqrt square sub tanh xor"
)


def values(measure: Measure, planes1: Planes, planes2: Planes) -> Array:
    """`measure.planes` with its calls written out."""
    return _flat(measure.planes, planes1, planes2)


def derivative(
    measure: Measure,
    planes1: Planes,
    planes2: Planes,
    cotangent: Array,
    *,
    sides: slice = slice(2),
) -> Planes:
    """`measure.planes_vjp`, the planes of one side or both, its calls written out."""

    def planes(*args: Any) -> Planes:
        return tuple(itertools.chain(*measure.planes_vjp(*args)[sides]))

    return _flat(planes, planes1, planes2, cotangent)


def _flat(function: Callable, *args: Any) -> Any:
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    results = _inline(traced.jaxpr, traced.consts, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _inline(
    jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]
) -> Sequence[Any]:
    """Evaluates a jaxpr, the bodies of calls in place of the calls."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in _needed(jaxpr):
        operands = [read(atom) for atom in equation.invars]
        body = _body(equation)
        name = equation.primitive.name
        if body is not None:
            results = _inline(body.jaxpr, body.consts, operands)
        elif name in _ARITHMETIC:
            results = [_ARITHMETIC[name](*operands, **equation.params)]
        else:
            results = equation.primitive.bind(*operands, **equation.params)
            if not equation.primitive.multiple_results:
                results = [results]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: core.Jaxpr) -> list[Any]:
    """The equations on which the results depend."""
    wanted, kept = set(map(id, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(map(id, equation.outvars)):
            kept.append(equation)
            wanted.update(map(id, equation.invars))
    return kept[::-1]


def _body(equation: Any) -> core.ClosedJaxpr | None:
    """What an equation calls, where it is nothing but a call."""
    if equation.primitive.name in ("while", "cond", "scan"):
        return None
    bodies = [equation.params[key] for key in _CALLS if key in equation.params]
    return bodies[0] if bodies else None


def _add(x: Array, y: Array, **_: Any) -> Array:
    return x + y


def _same(x: Array, **_: Any) -> Array:
    return x


def _not(x: Array, **_: Any) -> Array:
    return x ^ jnp.ones_like(x) if x.dtype == jnp.bool_ else -1 - x


def _is_finite(x: Array, **_: Any) -> Array:
    return jnp.abs(x) < jnp.inf


def _floor(x: Array, **_: Any) -> Array:
    near = jax.lax.round(x, jax.lax.RoundingMethod.TO_NEAREST_EVEN)
    return jnp.where(near > x, near - 1, near)


def _sign(x: Array, **_: Any) -> Array:
    return jnp.where(x > 0, 1, jnp.where(x < 0, -1, x))


def _tan(x: Array, **_: Any) -> Array:
    return jnp.sin(x) / jnp.cos(x)


def _log1p(x: Array, **_: Any) -> Array:
    """2 artanh(x / (2 + x)) as a series, where 1 + x would lose digits of x."""
    near = (x > -0.33) & (x < 0.5)
    s = jnp.where(near, x, 0) / (2 + jnp.where(near, x, 0))
    t = s * s
    series = (((t / 11 + 1 / 9) * t + 1 / 7) * t + 1 / 5) * t + 1 / 3
    return jnp.where(near, 2 * (s + s * t * series), jnp.log(1 + x))


def _expm1(x: Array, **_: Any) -> Array:
    """W. Kahan's: what rounding took from the power, it took from its logarithm too."""
    power = jnp.exp(x)
    plain = (power == 1) | (power - 1 == -1) | (power > 1e6)
    safe = jnp.where(plain, 2, power)
    careful = (safe - 1) * (x / jnp.log(safe))
    return jnp.where(power == 1, x, jnp.where(plain, power - 1, careful))


def _integer_pow(x: Array, *, y: int, **_: Any) -> Array:
    power = functools.reduce(operator.mul, [x] * abs(y), jnp.ones_like(x))
    return 1 / power if y < 0 else power


def _pow(x: Array, y: Array, **_: Any) -> Array:
    """x ** y of positive x; what the logarithm and the product lose, is put back."""
    positive = x > 0
    x = jnp.where(positive, x, 1)
    log = jnp.log(x)
    rest = x * jnp.exp(-log) - 1
    # Halves of 12 digits, whose products are exact (T. J. Dekker, 1971).
    (high1, low1), (high2, low2) = (_halves(z) for z in (log, y))
    product = log * y
    lost = ((high1 * high2 - product) + high1 * low2 + low1 * high2) + low1 * low2
    power = jnp.exp(product)
    return jnp.where(positive, power * (1 + (lost + rest * y)), 0)


def _halves(x: Array) -> tuple[Array, Array]:
    scaled = 4097 * x
    high = scaled - (scaled - x)
    return high, x - high


# What some compiler lacks, or gets wrong, of others that all of them know.
_ARITHMETIC: dict[str, Callable[..., Array]] = {
    "add_any": _add,
    "expm1": _expm1,
    "floor": _floor,
    "integer_pow": _integer_pow,
    "is_finite": _is_finite,
    "log1p": _log1p,
    "not": _not,
    "pow": _pow,
    "sign": _sign,
    "stop_gradient": _same,
    "tan": _tan,
}


@functools.cache
def operations(measure: Measure, backward: bool) -> frozenset[str]:
    """Names of the operations of a formula, or of its derivative; with odd dtypes."""

    def planes(*shape: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        one = jax.ShapeDtypeStruct(shape, jnp.float32)
        return (one,) * measure.coordinates

    if backward:
        block = planes(8, 128)
        traced = jax.make_jaxpr(measure.planes_vjp)(block, block, block[0])
    else:
        traced = jax.make_jaxpr(measure.planes)(planes(8, 1), planes(1, 128))
    return frozenset(_names(traced.jaxpr))


def _names(jaxpr: core.Jaxpr) -> Iterator[str]:
    for equation in jaxpr.eqns:
        body = _body(equation)
        if body is not None:
            yield from _names(body.jaxpr)
            continue
        if equation.primitive.name not in _ARITHMETIC:
            yield equation.primitive.name
        for variable in equation.outvars:
            dtype = str(getattr(variable.aval, "dtype", None))
            if dtype not in _TYPES:
                yield f"{equation.primitive.name} to {dtype}"


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def stack(planes: Sequence[Array], size: int, rows: int = 1) -> Array:
    """Planes `(batch, n)` as one array `(batch, k, size)`, k a multiple of `rows`.

    What is added along n repeats the last box, so that padding is as good as data.
    """
    stacked = jnp.stack(planes, axis=1)
    _, k, n = stacked.shape
    stacked = jnp.pad(stacked, ((0, 0), (0, 0), (0, size - n)), mode="edge")
    return jnp.pad(stacked, ((0, 0), (0, round_up(k, rows) - k), (0, 0)))


def thresholds(where: Array, size: int) -> Array:
    """`(batch, size)`: a value counts above it, that is never where a mask is False."""
    plane = jnp.where(where, -jnp.inf, jnp.inf).astype(jnp.float32)
    padding = ((0, 0), (0, size - plane.shape[1]))
    return jnp.pad(plane, padding, constant_values=jnp.inf)


def struct(shape: tuple[int, ...], dtype: Any, like: Array) -> jax.ShapeDtypeStruct:
    """The type of a kernel's output, varying over the mesh axes like its inputs."""
    return jax.ShapeDtypeStruct(
        shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type
    )


def first_best(best: Array, index: Array, axis: int) -> tuple[Array, Array]:
    """The best of several blocks' results, at ties that with the lowest index."""
    top = best.max(axis)
    found = jnp.where(best == jnp.expand_dims(top, axis), index, jnp.iinfo("int32").max)
    return top, jnp.where(top == -jnp.inf, -1, found.min(axis))


def in_rounds(
    launch: Callable[[Array], tuple[Array, ...]],
    measure: Measure,
    planes2: Planes,
    ties: bool,
) -> Matches:
    """Best partners by a kernel; with `ties` it runs again, against its own maxima.

    It is the same kernel in both rounds. Two differently compiled ones differ by an
    ulp, and the equality that finds the ties would fail.
    """
    goal = jnp.full_like(planes2[0], jnp.nan)  # NaN equals nothing
    found = Matches(*launch(goal))
    if not ties:
        return found
    best = found.values2
    goal = jnp.where(best > measure.minimum, best, jnp.nan)
    return found._replace(tied1=launch(goal)[-1])
