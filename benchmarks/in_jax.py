"""jaxiou, what one would write in JAX without it, and what the machine can do at most.

An implementation takes a job and its inputs and returns a `Call`, or raises `Skip`.
"""

import functools

import jax
import jax.numpy as jnp

import jaxiou

from . import plain, plain_assigners, plain_masks
from .timing import Call, Skip
from .workloads import ASSIGNERS, CLASSES, level_sizes

THRESHOLD = 0.5  # of suppression
LARGE = 4 << 30  # bytes of a matrix
CHOSEN = 100  # of soft suppression


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
    return jax.value_and_grad(lambda *inputs: loss(*inputs).sum())


def assigner(job):
    """jaxiou's, returning what the plain one does."""
    match job.case:
        case "atss":
            match_atss = functools.partial(
                jaxiou.match_atss, level_sizes=level_sizes(job.n)
            )
            return lambda *x: match_atss(*x).indices
        case "task_aligned":
            return lambda *x: jaxiou.match_task_aligned(*x)[::2]
    return lambda *x: jaxiou.match_simota(*x[:-1], strides=x[-1]).indices


def plain_assigner(job, xp, top):
    """The formula for one image."""
    formula = functools.partial(getattr(plain_assigners, job.case), xp, top)
    if job.case == "atss":
        return functools.partial(formula, level_sizes(job.n))
    return formula


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
        case _, name if name in ASSIGNERS:
            return compiled(assigner(job), *inputs)
        case "losses", "decoded giou":
            loss = lambda *x: jaxiou.giou_loss(jaxiou.decode(*x[:2]), x[2])  # noqa: E731
            return compiled(value_and_gradient(loss), *inputs)
        case "losses", name:
            loss = getattr(jaxiou, f"{name}_loss")
            return compiled(value_and_gradient(loss), *inputs)
        case "masks", name:
            name = "lovasz_softmax" if name == "lovasz" else f"{name}_loss"
            loss = functools.partial(getattr(jaxiou, name), axis=1)
            return compiled(value_and_gradient(loss), *inputs)
        case "nms", _:
            nms = functools.partial(jaxiou.nms, threshold=THRESHOLD, max_outputs=job.n)
            return compiled(lambda *x: numbered(nms(*x).indices), *inputs)
        case "rescoring", case:
            function = getattr(jaxiou, f"{case}_nms")
            slots = min(job.n, CHOSEN) if case == "soft" else job.n
            rescored = functools.partial(function, max_outputs=slots)
            return compiled(lambda *x: rescored(*x).scores, *inputs)
        case "evaluation", _:
            return compiled(precision, *inputs)
        case "rotated", "losses":
            return compiled(value_and_gradient(turned_loss), *inputs)
        case "rotated", case:
            matrix = functools.partial(jaxiou.pairwise, measure=jaxiou.rotated_iou)
            return compiled(pullback(matrix) if case == "vjp" else matrix, *inputs)
    raise Skip


def numbered(indices):
    """Boxes of several images counted through."""
    images, n = indices.shape
    start = n * jnp.arange(images, dtype=indices.dtype)[:, None]
    return jnp.where(indices >= 0, indices + start, -1).ravel()


def precision(boxes, scores, labels, targets, target_labels, real, crowd):
    found = boxes, scores, labels, targets, target_labels
    rest = dict(classes=CLASSES, where_targets=real, crowd=crowd)
    return jaxiou.average_precision(*found, **rest).precision


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
        case "match" | "assigners", case:
            refuse_large(job)
            one = {"best_match": _best, "match_anchors": _anchors}.get(case)
            one = one or plain_assigner(job, jnp, _top)
            if jax.default_backend() != "cpu" and 4 * job.pairs <= LARGE:
                return compiled(jax.vmap(one), *inputs)
            return compiled(lambda *x: jax.lax.map(lambda x: one(*x), x), *inputs)
        case "losses", "decoded giou":
            return compiled(value_and_gradient(_decoded), *inputs)
        case "losses", name:
            formula, stop = getattr(plain, name), jax.lax.stop_gradient
            loss = lambda a, b: 1 - formula(jnp, a.T, b.T, stop)  # noqa: E731
            return compiled(value_and_gradient(loss), *inputs)
        case "masks", name:
            return compiled(value_and_gradient(getattr(plain_masks, name)), *inputs)
        case "nms", _:
            refuse_large(job)
            return compiled(lambda *x: numbered(jax.vmap(_greedy)(*x)), *inputs)
        case "rescoring", "soft":
            return compiled(_soft, *inputs)
        case "rescoring", _:
            return compiled(functools.partial(plain_assigners.matrix_nms, jnp), *inputs)
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
            # Reads all, writes one.
            return compiled(lambda *x: functools.reduce(jnp.add, x), *inputs)
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


def _decoded(deltas, anchors, targets):
    boxes = plain.decoded(jnp, deltas.T, anchors.T)
    return 1 - plain.giou(jnp, boxes, targets.T)


def _soft(boxes, scores):
    """The matrix, and a loop over the best boxes."""
    factor = jnp.exp(-(plain.textbook(jnp, boxes, boxes) ** 2) / plain_assigners.SIGMA)

    def choose(scores, _):
        best = scores.argmax()
        lowered = (scores * factor[best]).at[best].set(-1)
        return lowered, scores[best]

    return jax.lax.scan(choose, scores, None, min(CHOSEN, scores.size))[1]


def _top(x, k):
    return jax.lax.top_k(x.T, k)[0].T


IMPLEMENTATIONS = {"jaxiou": ours, "limit": limit, "naive JAX": naive}
