"""What a measure is: a formula on coordinate planes, and everything derived from it.

A *formula* compares one pair of boxes. It takes two tuples of coordinate planes, arrays
that broadcast against each other, and returns one plane:

    @measure(minimum=0.0)
    def iou(a, b):
        ...

Planes of shape `(n,)` and `(n,)` give the aligned form, `(n, 1)` and `(1, m)` the
matrix, blocks of either the kernels. The derivative is `jax.vjp` of the same formula,
unless the measure brings a closed form (`vjp=`).

A formula of the form "overlap minus penalties" may return these terms as a tuple: the
value is the first minus the others, and what is made of other measures (a power of
each term, the overlap of smaller boxes, ...) can get at them.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks, _numerics
from ._loops import together, varying

Planes = tuple[Array, ...]
Formula = Callable[..., Array | Planes]
PlaneVjp = (
    Callable[..., tuple[Planes, Planes]]
    | tuple[Callable[..., Any], Callable[..., tuple[Planes, Planes]]]
)


@dataclass(frozen=True, eq=True, repr=False)
class Measure:
    """A number that says how well two boxes agree; larger is better.

    Calling a measure is aligned, `(*batch, 4) × (*batch, 4) → (*batch)`, and leading
    axes broadcast; `jaxiou.pairwise` is the matrix. Made by `jaxiou.measure`.

    A measure is a value: frozen and hashable, equal when formula and parameters are
    equal, so that it can be a static argument and compile once.

    Attributes:
        formula: `(planes1, planes2, **parameters) -> plane`, or a tuple of planes, the
            overlap and the penalties that are subtracted from it.
        parameters: static parameters as sorted `(name, value)` pairs.
        minimum: greatest known lower bound, `-inf` where none is known.
        maximum: value for identical boxes.
        coordinates: numbers per box.
        symmetric: whether the order of the two boxes does not matter.
        scale_free: whether scaling both boxes changes nothing.
        vjp: optional closed form `(planes1, planes2, cotangent, **parameters) ->
            (cotangents1, cotangents2)`, used in place of `jax.vjp(formula)`; or a pair
            of functions, see `jaxiou.measure`.
        forward: whether derivatives come from the formula itself instead of a
            `custom_vjp`; see `plain`.
    """

    formula: Formula
    parameters: tuple[tuple[str, Any], ...] = ()
    minimum: float = -math.inf
    maximum: float = 1.0
    coordinates: int = 4
    symmetric: bool = True
    scale_free: bool = True
    vjp: PlaneVjp | None = None
    forward: bool = False
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        # `help(jaxiou.giou)` and the API pages show the formula's text.
        object.__setattr__(self, "__doc__", self.formula.__doc__)
        object.__setattr__(self, "__module__", self.formula.__module__)
        object.__setattr__(self, "__name__", self.name)

    @property
    def plain(self) -> "Measure":
        """The same measure without `custom_vjp`, usable wherever a measure is.

        `custom_vjp` forbids forward mode. This form allows `jax.jvp`, `linearize`,
        `jacfwd` and `hessian`, with the same values and equally safe gradients; reverse
        mode then stores all intermediate values. In float16 its gradients overflow
        where they would saturate: for sides below 1e-4.
        """
        return replace(self, forward=True)

    def planes(self, planes1: Planes, planes2: Planes) -> Array:
        """Evaluates the formula on planes that broadcast."""
        value, *penalties = self.terms(planes1, planes2)
        for penalty in penalties:
            value = value - penalty
        return value

    def terms(self, planes1: Planes, planes2: Planes) -> Planes:
        """What the formula returns: the overlap and penalties, or the value alone."""
        result = self.formula(planes1, planes2, **dict(self.parameters))
        return result if isinstance(result, tuple) else (result,)

    def planes_vjp(
        self, planes1: Planes, planes2: Planes, cotangent: Array
    ) -> tuple[Planes, Planes]:
        """Cotangents of both tuples of planes, each in the shape of its plane."""
        if self.vjp is not None:
            closed = self.pairs_vjp(planes1, planes2, cotangent)
            return jax.tree.map(_sum_to, closed, (planes1, planes2))
        _, pullback = jax.vjp(self.planes, planes1, planes2)
        return pullback(cotangent)

    def pairs_vjp(
        self,
        planes1: Planes,
        planes2: Planes,
        cotangent: Array,
        *,
        together: Callable[[Any], Any] = lambda planes: planes,
    ) -> tuple[Planes, Planes]:
        """The same before any sum: all in the shape of the cotangent.

        `together` is applied to what a closed form in two steps shares, if it is one;
        it returns the same planes.
        """
        parameters = dict(self.parameters)
        if isinstance(self.vjp, tuple):
            shared = together(self.vjp[0](planes1, planes2, **parameters))
            return self.vjp[1](planes1, planes2, cotangent, shared, **parameters)
        if self.vjp is not None:
            return self.vjp(planes1, planes2, cotangent, **parameters)
        # Broadcast first, so that the sums are the caller's: here XLA would fuse them
        # with the formula, and repeat it.
        planes1, planes2 = (
            tuple(jnp.broadcast_to(p, cotangent.shape) for p in planes)
            for planes in (planes1, planes2)
        )
        _, pullback = jax.vjp(self.planes, planes1, planes2)
        return pullback(cotangent)

    def __call__(
        self, boxes1: _checks.Boxes, boxes2: _checks.Boxes
    ) -> Float[Array, "*batch"]:
        array1, array2 = self._inputs(self.name, ("boxes1", "boxes2"), boxes1, boxes2)
        values = aligned(self, array1, array2)
        return narrow(values, _checks.result_dtype(array1, array2))

    def _inputs(
        self, function: str, names: tuple[str, str], boxes1: Any, boxes2: Any
    ) -> tuple[Array, Array]:
        array1 = _checks.as_boxes(
            function, names[0], boxes1, coordinates=self.coordinates
        )
        array2 = _checks.as_boxes(
            function, names[1], boxes2, coordinates=self.coordinates
        )
        _checks.broadcast_batch(function, names, array1.shape[:-1], array2.shape[:-1])
        return array1, array2

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.parameters)
        call = f"({arguments})" if arguments else ""
        return f"{self.name}{call}{'.plain' if self.forward else ''}"


def as_measure(function: str, value: Any, *, name: str = "measure") -> Measure:
    """Checks a `measure=` argument, or one of another name."""
    if isinstance(value, Measure):
        return value
    family = getattr(value, "__name__", "m")
    hint = (
        value.not_a_measure
        if hasattr(value, "not_a_measure")
        else f"call it with its parameters, as in `{name}={family}(...)`"
        if hasattr(value, "measure_family")
        else f"pass the function itself, as in `{name}=jaxiou.{value}`"
        if isinstance(value, str)
        else "decorate a formula with `@jaxiou.measure`"
    )
    raise TypeError(
        f"jaxiou.{function}: `{name}` is {value!r}, wanted a jaxiou measure; {hint}."
    )


@overload
def measure(formula: Formula, /) -> Any: ...
@overload
def measure(
    *,
    minimum: float = ...,
    maximum: float = ...,
    coordinates: int = ...,
    symmetric: bool = ...,
    scale_free: bool = ...,
    vjp: PlaneVjp | None = ...,
    given: Callable[..., dict[str, Any]] | None = ...,
) -> Callable[[Formula], Any]: ...


def measure(
    formula: Formula | None = None,
    /,
    *,
    minimum: float = -math.inf,
    maximum: float = 1.0,
    coordinates: int = 4,
    symmetric: bool = True,
    scale_free: bool = True,
    vjp: PlaneVjp | None = None,
    given: Callable[..., dict[str, Any]] | None = None,
) -> Any:
    """Makes a measure of a formula on one pair of boxes.

    The formula takes two tuples of coordinate planes that broadcast against each other
    and returns one plane. It must be elementwise. Keyword-only parameters of the
    formula make a family of measures: the decorated name is then called with numbers
    (or other measures) and returns the measure.

    Args:
        formula: `(planes1, planes2, *, ...) -> plane`, or a tuple of planes: an overlap
            and the penalties that are subtracted from it.
        minimum: greatest lower bound of the values, `-inf` where unknown.
        maximum: the value of a box with itself.
        coordinates: numbers per box; 4 for `(x1, y1, x2, y2)`.
        symmetric: whether the order of the boxes does not matter.
        scale_free: whether scaling both boxes changes nothing.
        vjp: closed-form derivative `(planes1, planes2, cotangent, *, ...) ->
            (cotangents1, cotangents2)`, every entry in the shape of the cotangent. Or a
            pair of functions, `(planes1, planes2, *, ...) -> shared`, planes that many
            entries are made of and that are computed once, and the closed form with
            `shared` as its fourth argument.
        given: for a family, called with the parameters of a new member: raises where
            they make no sense and returns the attributes that depend on them.

    Returns:
        A `Measure`, or a function that makes one where the formula has parameters.

    Raises:
        TypeError: when an array is given as a parameter.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxiou
        >>> @jaxiou.measure(minimum=0.0)
        ... def width_ratio(a, b):
        ...     wa, wb = a[2] - a[0], b[2] - b[0]
        ...     return jnp.minimum(wa, wb) / jnp.maximum(wa, wb)
        >>> print(width_ratio([0.0, 0.0, 3.0, 2.0], [1.0, 1.0, 5.0, 2.0]))
        0.75
        >>> print(jaxiou.pairwise([[0, 0, 3, 2]], [[1, 1, 5, 2], [0, 0, 6, 1]],
        ...                       measure=width_ratio))
        [[0.75 0.5 ]]
    """
    if formula is None:
        return functools.partial(
            measure,
            minimum=minimum,
            maximum=maximum,
            coordinates=coordinates,
            symmetric=symmetric,
            scale_free=scale_free,
            vjp=vjp,
            given=given,
        )
    name = getattr(formula, "__name__", "measure")
    base = Measure(
        formula=formula,
        minimum=minimum,
        maximum=maximum,
        coordinates=coordinates,
        symmetric=symmetric,
        scale_free=scale_free,
        vjp=vjp,
        name=name,
    )
    keywords = [
        p
        for p in inspect.signature(formula).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    if keywords:
        return _family(base, keywords, given or (lambda **parameters: {}))
    return base


def _family(
    base: Measure,
    keywords: list[inspect.Parameter],
    given: Callable[..., dict[str, Any]],
) -> Callable[..., Measure]:
    """A function from parameters to measures, with the formula's docstring."""
    required = [
        p.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for p in keywords
        if p.default is inspect.Parameter.empty
    ]
    optional = [p for p in keywords if p.default is not inspect.Parameter.empty]
    signature = inspect.Signature(required + optional)

    def make(*args: Any, **kwargs: Any) -> Measure:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        parameters = tuple(
            (key, _static(base.name, key, value))
            for key, value in sorted(bound.arguments.items())
        )
        return replace(base, parameters=parameters, **given(**dict(parameters)))

    functools.update_wrapper(make, base.formula)
    make.__signature__ = signature  # type: ignore[attr-defined]
    make.__annotations__ = {p.name: p.annotation for p in keywords} | {
        "return": Measure
    }
    make.measure_family = True  # type: ignore[attr-defined]
    return make


def _static(function: str, name: str, value: Any) -> Any:
    if isinstance(value, jax.Array) or hasattr(value, "__array__"):
        raise TypeError(
            f"jaxiou.{function}: parameter `{name}` is an array ({value!r}), wanted a "
            "Python number: parameters are static, part of the measure's identity and "
            f"of the compiled program; pass `float({name})` outside of `jit`."
        )
    if isinstance(value, list | tuple):
        return tuple(_static(function, name, entry) for entry in value)
    return float(value) if isinstance(value, int) else value


def split(boxes: Array, dtype: jnp.dtype) -> Planes:
    """Boxes as saturated coordinate planes in the arithmetic dtype."""
    limit = _numerics.largest(dtype)
    # Selecting before saturating keeps the derivative of ordinary values at exactly 1.
    return tuple(
        _numerics.saturate(boxes[..., k].astype(dtype), limit)
        for k in range(boxes.shape[-1])
    )


def narrow(values: Array, dtype: jnp.dtype) -> Array:
    """Values in the dtype of the result; one without a bound saturates in half."""
    if jnp.finfo(dtype).bits < 32:
        values = _numerics.saturate(values, float(jnp.finfo(dtype).max))
    return values.astype(dtype)


def select(mask: Array, boxes: Array) -> Array:
    """Replaces masked boxes by a finite one *before* any arithmetic sees them."""
    return jnp.where(mask[..., None], boxes, jnp.zeros((), boxes.dtype))


def spread(measure: Measure, boxes: Array, batch: tuple[int, ...]) -> Array:
    """Broadcasts the leading axes to `batch`, with a gradient that stays finite."""
    shape = (*batch, boxes.shape[-1])
    half = jnp.issubdtype(boxes.dtype, jnp.floating) and boxes.dtype.itemsize < 4
    if boxes.shape == shape or measure.forward or not half:
        return jnp.broadcast_to(boxes, shape)
    return _spread(shape, boxes.reshape((1,) * (len(shape) - boxes.ndim) + boxes.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _spread(shape: tuple[int, ...], boxes: Array) -> Array:
    return jnp.broadcast_to(boxes, shape)


def _spread_fwd(shape: tuple[int, ...], boxes: Array) -> tuple[Array, Array]:
    return _spread(shape, boxes), jnp.zeros(boxes.shape[:-1], boxes.dtype)


def _spread_bwd(
    shape: tuple[int, ...], residual: Array, cotangent: Array
) -> tuple[Array]:
    # Summed in float32 and saturated once: saturated parts would add up to infinity.
    planes = [cotangent[..., k].astype(jnp.float32) for k in range(shape[-1])]
    return (join(tuple(planes), residual[..., None]),)


_spread.defvjp(_spread_fwd, _spread_bwd)


def aligned(measure: Measure, boxes1: Array, boxes2: Array) -> Array:
    """One value per pair in the arithmetic dtype; the only caller of `custom_vjp`."""
    boxes1, boxes2 = promote(boxes1, boxes2)
    # Inside of `shard_map` the gradient of what devices share is a sum over them.
    boxes1, boxes2 = varying((boxes1, boxes2), (boxes1, boxes2))
    if measure.forward:
        return _evaluate(measure, boxes1, boxes2)
    return _aligned(measure, boxes1, boxes2)


def promote(boxes1: Array, boxes2: Array) -> tuple[Array, Array]:
    """Gives both operands the same rank, and integers the arithmetic dtype."""
    dtype = _checks.arithmetic_dtype(boxes1, boxes2)
    rank = max(boxes1.ndim, boxes2.ndim)

    def one(boxes: Array) -> Array:
        boxes = boxes.reshape((1,) * (rank - boxes.ndim) + boxes.shape)
        return (
            boxes.astype(dtype) if jnp.issubdtype(boxes.dtype, jnp.integer) else boxes
        )

    return one(boxes1), one(boxes2)


def _evaluate(measure: Measure, boxes1: Array, boxes2: Array) -> Array:
    dtype = _checks.arithmetic_dtype(boxes1, boxes2)
    values = measure.planes(split(boxes1, dtype), split(boxes2, dtype))
    shape = jnp.broadcast_shapes(boxes1.shape[:-1], boxes2.shape[:-1])
    if values.shape != shape:
        raise ValueError(
            f"jaxiou.{measure.name}: the formula returned shape {values.shape} for "
            f"planes that broadcast to {shape}; a formula must be elementwise."
        )
    return values


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _aligned(measure: Measure, boxes1: Array, boxes2: Array) -> Array:
    return _evaluate(measure, boxes1, boxes2)


def _aligned_fwd(
    measure: Measure, boxes1: Array, boxes2: Array
) -> tuple[Array, tuple[Any, Any]]:
    values = _aligned(measure, boxes1, boxes2)
    # JAX takes a residual that is an operand for another one where it lifts constants
    # out of a loop; behind a barrier it is none.
    boxes = jax.lax.optimization_barrier((boxes1, boxes2))
    # One operand against many: slopes would be kept for every pair.
    if boxes1.shape != boxes2.shape:
        return values, (boxes, None)
    # Written in the pass that writes the values. Without barriers XLA fuses the slopes
    # with what follows, and on a GPU writes a dozen planes in between. One for each
    # side: what nobody asks for is not computed.
    whole = values, *_slopes(measure, (boxes1, boxes2), values)
    values, *slopes = map(jax.lax.optimization_barrier, whole)
    return values, (boxes, slopes)


def _slopes(
    measure: Measure, boxes: tuple[Array, Array], like: Array
) -> tuple[Planes, Planes]:
    """What one unit of every value changes by, over the planes of both sides."""
    dtype = _checks.arithmetic_dtype(*boxes)
    planes1, planes2 = (split(x, dtype) for x in boxes)
    ones = jnp.ones_like(like)
    return together(measure.pairs_vjp(planes1, planes2, ones, together=together))


def _aligned_bwd(measure: Measure, residuals: Any, cotangent: Array) -> tuple[Any, ...]:
    boxes, slopes = residuals
    if slopes is None:
        slopes = _slopes(measure, boxes, cotangent)
    # A steep loss has a large cotangent, and slopes are of the size 1 / side: inside of
    # the formula their product could overflow and turn NaN, here it saturates.
    limit = float(jnp.finfo(cotangent.dtype).max)
    gradients = jax.tree.map(
        lambda slope: _numerics.saturate(slope * cotangent, limit), slopes
    )
    return tuple(join(g, x) for g, x in zip(gradients, boxes, strict=True))


_aligned.defvjp(_aligned_fwd, _aligned_bwd)


def join(planes: Planes, boxes: Array) -> Array:
    """Stacks gradient planes to the shape and dtype of the boxes they belong to."""
    shape = boxes[..., 0].shape
    # Concatenated: a box that came out of `convert` or `decode` takes the columns apart
    # again, which XLA sees through here and not through an interleaving selection.
    total = jnp.stack([_sum_to(plane, shape) for plane in planes], axis=-1)
    if _checks.is_sharded(total):  # Like the cotangent; wanted is the boxes' own.
        total = jax.sharding.reshard(total, jax.typeof(boxes).sharding.spec)
    # Gradients grow as 1 / side: in half precision they saturate.
    return narrow(total, jnp.dtype(boxes.dtype))


def _sum_to(plane: Array, like: Array | tuple[int, ...]) -> Array:
    """Sums the axes along which an operand of shape `like` was broadcast."""
    shape = like if isinstance(like, tuple) else like.shape
    axes = [k for k, size in enumerate(shape) if size == 1 and plane.shape[k] != 1]
    return plane.sum(axis=tuple(axes), keepdims=True) if axes else plane
