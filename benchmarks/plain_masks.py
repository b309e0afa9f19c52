"""Losses of pixel masks as they are published: in JAX, and by other libraries in torch.

Those of JAX take probabilities and labels `(images, pixels, classes)`, those of torch
`(images, classes, pixels)`, as their users have them; all give one loss per image and
class. The libraries' own code reduces over more, checks, and takes the softmax itself;
what is here is their formula with their constants, written anew.
"""

import jax.numpy as jnp


def jaccard(p, t):
    shared = (p * t).sum(1)
    return 1 - shared / (p.sum(1) + t.sum(1) - shared)


def dice(p, t):
    return 1 - 2 * (p * t).sum(1) / (p.sum(1) + t.sum(1))


def lovasz(p, t):
    """Sorted errors times differences of the Jaccard loss, through which autodiff goes.

    The authors write out as well that the labels, and so the differences, are constant.
    """
    errors = jnp.abs(t - p)
    order = jnp.argsort(-errors, axis=1)
    t = jnp.take_along_axis(t, order, axis=1)
    total = t.sum(1, keepdims=True)
    shared, union = total - t.cumsum(1), total + (1 - t).cumsum(1)
    loss = 1 - shared / union
    steps = jnp.concatenate([loss[:, :1], loss[:, 1:] - loss[:, :-1]], axis=1)
    return (jnp.take_along_axis(errors, order, axis=1) * steps).sum(1)


def monai_dice(torch, p, t, jaccard=False):
    shared, whole = (t * p).sum(-1), t.sum(-1) + p.sum(-1)
    if jaccard:
        whole = 2 * (whole - shared)
    return 1 - (2 * shared + 1e-5) / (whole + 1e-5)


def monai_jaccard(torch, p, t):
    return monai_dice(torch, p, t, jaccard=True)


def smp_jaccard(torch, p, t):
    shared, both = (p * t).sum(-1), (p + t).sum(-1)
    return 1 - shared / (both - shared).clamp_min(1e-7)


def smp_dice(torch, p, t):
    shared, both = (p * t).sum(-1), (p + t).sum(-1)
    return 1 - 2 * shared / both.clamp_min(1e-7)


def kornia_dice(torch, p, t):
    shared, both = (p * t).sum(-1), (p + t).sum(-1)
    return 1 - 2 * shared / (both + 1e-8)


def kornia_lovasz(torch, p, t):
    """All images and classes at once, as kornia has it."""
    errors, order = torch.sort((p - t).abs(), dim=-1, descending=True)
    t = t.gather(-1, order)
    total = t.sum(-1, keepdim=True)
    loss = 1 - (total - t.cumsum(-1)) / (total + (1 - t).cumsum(-1))
    steps = torch.cat([loss[..., :1], loss[..., 1:] - loss[..., :-1]], -1)
    return (errors * steps).sum(-1)


def smp_lovasz(torch, p, t):
    """One class after the other, as the authors' code and smp have it."""
    rows = zip(p.flatten(0, 1), t.flatten(0, 1), strict=True)
    return torch.stack([kornia_lovasz(torch, *row) for row in rows])
