"""jaxiou, what one would write in JAX without it, and what the machine can do at most.

An implementation takes a job and its inputs and returns a `Call`, or raises `Skip`.
"""

import functools

import jax
import jax.numpy as jnp

import jaxiou

from . import plain, plain_masks
from .timing import Call, Skip

THRESHOLD = 0.5  # of suppression
LARGE = 4 << 30  # bytes of a matrix


def compiled(function, *inputs, scale=1.0):
    inputs = jax.block_until_ready(jax.device_put(inputs))
    program = jax.jit(function).lower(*inputs).compile()
    memory = program.memory_analysis()
    return Call(
        lambda: program(*inputs),
        wait=jax.block_until_ready,
        temporary=memory and memory.temp_size_in_bytes,
        scale=scale,
    )


def pullback(matrix):
    """The gradients for a given cotangent.

    Not the gradient of a sum: XLA would fuse the forward into that sum.
    """
    return lambda a, b, cotangent: jax.vjp(matrix, a, b)[1](cotangent)


def value_and_gradient(loss):
    return jax.value_and_grad(lambda a, b: loss(a, b).sum())


def ours(job, inputs):
    match job.family, job.case:
        case "pairwise", "forward":
            return compiled(jaxiou.pairwise, *inputs)
        case "pairwise", "vjp":
            return compiled(pullback(jaxiou.pairwise), *inputs)
        case "match" | "memory", "best_match":
            return compiled(jaxiou.best_match, *inputs)
        case "match", "match_anchors":
            return compiled(jaxiou.match_anchors, *inputs)
        case "memory", "streamed":
            one = lambda pair: jaxiou.best_match(*pair)  # noqa: E731
            return compiled(lambda a, b: jax.lax.map(one, (a, b)), *inputs)
        case "losses", name:
            loss = getattr(jaxiou, f"{name}_loss")
            return compiled(value_and_gradient(loss), *inputs)
        case "masks", name:
            name = "lovasz_softmax" if name == "lovasz" else f"{name}_loss"
            loss = functools.partial(getattr(jaxiou, name), axis=1)
            return compiled(value_and_gradient(loss), *inputs)
        case "nms", _:
            nms = functools.partial(jaxiou.nms, threshold=THRESHOLD, max_outputs=job.n)
            return compiled(lambda *x: nms(*x).indices, *inputs)
        case "rotated", "losses":
            return compiled(value_and_gradient(turned_loss), *inputs)
        case "rotated", case:
            matrix = functools.partial(jaxiou.pairwise, measure=jaxiou.rotated_iou)
            return compiled(pullback(matrix) if case == "vjp" else matrix, *inputs)
    raise Skip


def turned_loss(a, b):
    return jaxiou.box_loss(a, b, measure=jaxiou.rotated_iou)


def naive(job, inputs):
    textbook = functools.partial(plain.textbook, jnp)
    match job.family, job.case:
        case "memory", _:
            raise Skip
        case "pairwise", "forward":
            return compiled(textbook, *inputs)
        case "pairwise", "vjp":
            return compiled(pullback(textbook), *inputs)
        case "match", case:
            refuse_large(job)
            one = _best if case == "best_match" else _anchors
            if jax.default_backend() != "cpu" and 4 * job.pairs <= LARGE:
                return compiled(jax.vmap(one), *inputs)
            return compiled(lambda *x: jax.lax.map(lambda x: one(*x), x), *inputs)
        case "losses", name:
            formula, stop = getattr(plain, name), jax.lax.stop_gradient
            loss = lambda a, b: 1 - formula(jnp, a.T, b.T, stop)  # noqa: E731
            return compiled(value_and_gradient(loss), *inputs)
        case "masks", name:
            return compiled(value_and_gradient(getattr(plain_masks, name)), *inputs)
        case "nms", _:
            refuse_large(job)
            return compiled(_greedy, *inputs)
        case "rotated", "losses":
            loss = lambda a, b: 1 - plain.turned(jnp, a.T, b.T)  # noqa: E731
            return compiled(value_and_gradient(loss), *inputs)
        case "rotated", case:
            whole = pullback(turned_matrix) if case == "vjp" else turned_matrix
            return compiled(whole, *inputs)
    raise Skip


def turned_matrix(a, b):
    return plain.turned(jnp, a.T[:, :, None], b.T[:, None, :])


def limit(job, inputs):
    """The memory's or the arithmetic's, whichever the job has to respect."""
    match job.family, job.case:
        case "pairwise" | "rotated", "forward":
            return compiled(lambda x: jnp.full((job.n, job.m), x), jnp.float32(0.5))
        case ("losses" | "masks", _) | ("rotated", "losses"):
            return compiled(jnp.add, *inputs)  # reads two, writes one
        case "pairwise" | "match", _:
            # Enough for an accelerator to be busy longer than it takes to ask it.
            size, boxes = 1 << (18 if jax.default_backend() == "cpu" else 24), 32
            a, b = jnp.ones((4, size)), jnp.full((boxes, 4), 0.5)
            return compiled(_arithmetic, a, b, scale=job.pairs / (size * boxes))
    raise Skip


def refuse_large(job):
    """For implementations that write the matrix, often several times over."""
    size = 4 * job.n * (job.n if job.family == "nms" else job.m)
    if size > LARGE:
        raise Skip(f"its matrix alone has {size / 1e9:.0f} GB")


def _arithmetic(a, b):
    """Intersections of boxes in registers and cache, reduced at once."""
    total = 0.0
    for box in b:
        width = jnp.minimum(a[2], box[2]) - jnp.maximum(a[0], box[0])
        height = jnp.minimum(a[3], box[3]) - jnp.maximum(a[1], box[1])
        total += jnp.maximum(width, 0) * jnp.maximum(height, 0)
    return total


def _best(a, b):
    matrix = plain.textbook(jnp, a, b)
    return matrix.max(1), matrix.argmax(1), matrix.max(0), matrix.argmax(0)


def _anchors(a, b):
    matrix = plain.textbook(jnp, a, b)
    best, most = matrix.max(1), matrix.max(0)
    forced = ((matrix == most[None]) & (most > 0)[None]).any(1)
    rest = jnp.where(best >= 0.4, -2, -1)
    return jnp.where((best >= 0.5) | forced, matrix.argmax(1), rest), best


def _greedy(boxes, scores):
    """The matrix, and a loop over the boxes by falling score."""
    order = jnp.argsort(-scores)
    above = plain.textbook(jnp, boxes[order], boxes[order]) > THRESHOLD
    later = jnp.arange(scores.size)

    def visit(i, keep):
        return jnp.where(keep[i], keep & ~(above[i] & (later > i)), keep)

    keep = jax.lax.fori_loop(0, scores.size, visit, jnp.ones(scores.shape, bool))
    return jnp.where(keep, order, -1)


IMPLEMENTATIONS = {"jaxiou": ours, "limit": limit, "naive JAX": naive}
