"""Every public measure, families by a member or two, and what the oracle says of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle

import jaxiou

MEMBERS = [
    jaxiou.iou,
    jaxiou.iof,
    jaxiou.giou,
    jaxiou.diou,
    jaxiou.ciou,
    jaxiou.gated_ciou(gate=0.25),
    jaxiou.eiou,
    jaxiou.siou,
    jaxiou.extended_iou,
    jaxiou.smooth_iou(point=0.5),
    jaxiou.bounded_iou,
    jaxiou.mpdiou(image_size=(40, 30)),
    jaxiou.shape_iou(scale=0.5),
    jaxiou.piou,
    jaxiou.piou_v2(attention=1.3),
    jaxiou.wiou,
    jaxiou.alpha_iou(alpha=3),
    jaxiou.alpha_iou(alpha=0.5, base=jaxiou.diou),
    jaxiou.alpha_iou(alpha=1.5, base=jaxiou.ciou),
    jaxiou.inner_iou(ratio=1.25),
    jaxiou.inner_iou(ratio=0.7, base=jaxiou.siou),
    jaxiou.focaler(lower=0.0, upper=0.75),
    jaxiou.focaler(lower=0.125, upper=0.9, base=jaxiou.diou),
]
# Formulas of `+ - * /` alone, which fractions evaluate exactly.
RATIONAL = [
    jaxiou.iou,
    jaxiou.iof,
    jaxiou.giou,
    jaxiou.diou,
    jaxiou.eiou,
    jaxiou.extended_iou,
    jaxiou.smooth_iou(point=0.5),
    jaxiou.bounded_iou,
    jaxiou.mpdiou(image_size=(40, 30)),
    jaxiou.alpha_iou(alpha=3),
    jaxiou.inner_iou(ratio=1.25),
    jaxiou.focaler(lower=0.0, upper=0.75),
]
ROWS = 512  # One shape for all, so that every dtype compiles once.


def expected(measure, held=None):
    """The oracle's function for a measure; `held` where part of it is constant."""
    keys = dict(measure.parameters)
    if "base" in keys:
        keys["base"] = keys["base"].name
    is_held = measure.name in ("ciou", "gated_ciou", "wiou") or keys.get("base")
    if held is not None and is_held:
        keys["held"] = held
    return functools.partial(getattr(oracle, measure.name), **keys)


@functools.cache
def _compiled(dtype):
    def everything(a, b):
        results = []
        for measure in MEMBERS:
            values, pull = jax.vjp(measure, a, b)
            results.append((values, *pull(jnp.ones_like(values))))
        return jax.tree.map(lambda *x: jnp.stack(x), *results)

    pair = (jax.ShapeDtypeStruct((ROWS, 4), dtype),) * 2
    # What users run is compiled as they compile it; elsewhere compiling costs most.
    options = None if dtype == "float32" else {"xla_backend_optimization_level": 0}
    return jax.jit(everything).lower(*pair).compile(compiler_options=options)


def evaluate(a, b, dtype="float32"):
    """Values `(members, n)` and gradients `(members, n, 4)` of all at once."""
    with np.errstate(over="ignore"):
        a, b = (jnp.asarray(np.asarray(x), dtype) for x in (a, b))
    n = len(a)
    parts = []
    for start in range(0, n, ROWS):
        rows = np.minimum(np.arange(start, start + ROWS), n - 1)
        parts.append(_compiled(dtype)(a[rows], b[rows]))
    return tuple(np.concatenate(x, axis=1)[:, :n] for x in zip(*parts, strict=True))
