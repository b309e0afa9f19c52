"""The assigners as loops over targets, with the rules of other libraries as options."""

import itertools

import numpy as np


def matrix_of(boxes, targets):
    """IoU in float64; nothing is compiled for it."""
    boxes, targets = np.asarray(boxes, float), np.asarray(targets, float)
    a, b = boxes[:, None], targets[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.maximum(sides, 0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return common / (areas - common)


def first(values, k):
    """The k largest, the lower index at ties."""
    return np.argsort(-values, kind="stable")[:k]


def offsets(points, boxes):
    """How far points lie inside of boxes, the least of all sides."""
    points, boxes = points[:, None], boxes[None]
    sides = np.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], -1)
    return sides.min(-1)


def shared_out(claims, worth):
    """One target per anchor: of those that claim it, the one of most worth."""
    worth = np.where(claims, worth, -np.inf)
    if not claims.shape[1]:
        return np.full(len(claims), -1)
    return np.where(claims.any(1), worth.argmax(1), -1)


def atss(anchors, targets, level_sizes, topk):
    overlaps = matrix_of(anchors, targets)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    claims = np.zeros(overlaps.shape, bool)
    ends = np.cumsum([0, *level_sizes])
    for j, target in enumerate(targets):
        centre = (target[:2] + target[2:]) / 2
        distance = ((centres - centre) ** 2).sum(1)
        chosen = np.concatenate(
            [a + first(-distance[a:b], topk) for a, b in itertools.pairwise(ends)]
        )
        values = overlaps[chosen, j]
        inside = offsets(centres[chosen], target[None])[:, 0] > 0
        claims[chosen, j] = (values >= values.mean() + values.std(ddof=1)) & inside
    return shared_out(claims, overlaps)


def task_aligned(
    scores,
    boxes,
    points,
    labels,
    targets,
    *,
    topk=13,
    alpha=1.0,
    beta=6.0,
    regions=None,
    drop_later=False,
):
    """Also the soft scores; `drop_later` is what mmdetection does."""
    overlaps = matrix_of(boxes, targets)
    t = scores[:, labels].astype(float) ** alpha * np.maximum(overlaps, 0) ** beta
    inside = offsets(points, targets if regions is None else regions) > 0
    claims = np.zeros(overlaps.shape, bool)
    for j in range(len(targets)):
        chosen = first(t[:, j] if drop_later else t[:, j] * inside[:, j], topk)
        claims[chosen, j] = inside[chosen, j] & (t[chosen, j] > 0)
    index = shared_out(claims, overlaps)
    soft = np.zeros(len(boxes))
    for j in range(len(targets)):
        own = index == j
        if own.any():
            soft[own] = t[own, j] / t[own, j].max() * overlaps[own, j].max()
    return index, soft


def simota(
    scores,
    boxes,
    points,
    labels,
    targets,
    *,
    strides,
    radius=2.5,
    topk=10,
    class_weight=1.0,
    measure_weight=3.0,
    of_all=False,
):
    """`of_all` gives a contested anchor to the cheapest target, chosen by it or not."""
    overlaps = matrix_of(boxes, targets)
    inside = offsets(points, targets) > 0
    centres = (targets[:, :2] + targets[:, 2:]) / 2
    near = np.abs(points[:, None] - centres[None]).max(-1) < radius * strides[:, None]
    scores = np.clip(scores.astype(float), 1e-7, 1 - 1e-7)
    hot = np.eye(scores.shape[1])[labels]
    entropy = -(
        hot[None] * np.log(scores)[:, None] + (1 - hot) * np.log(1 - scores)[:, None]
    ).sum(-1)
    cost = class_weight * entropy - measure_weight * np.log(np.maximum(overlaps, 1e-7))
    cost = np.where(inside & near, cost, cost + 1e5)
    candidates = (inside | near).any(1)
    cost[~candidates] = np.inf
    claims = np.zeros(overlaps.shape, bool)
    for j in range(len(targets)):
        best = np.sort(overlaps[candidates, j])[::-1][:topk]
        # Thirds may add up to a hair below the whole number that they are.
        wanted = max(1, int(best.sum() + 1e-9))
        claims[first(-cost[:, j], wanted), j] = True
    claims &= candidates[:, None]
    if of_all:
        contested = claims.sum(1, keepdims=True) > 1
        claims = np.where(contested, True, claims)
    return shared_out(claims, -cost)
