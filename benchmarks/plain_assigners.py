"""Assigners and matrix suppression as other projects write them, on the whole matrix.

For any array library `xp`; `top(x, k)` gives the k largest of each column. The formulas
are mmdetection's, without its arrays of anchors × targets × classes.
"""

from . import plain

CANDIDATES, ALIGNED, SUMMED = 9, 13, 10  # k of ATSS, task-aligned and SimOTA
SIGMA = 0.5  # of matrix suppression


def atss(xp, top, sizes, anchors, targets):
    overlap = plain.matrix(xp, anchors, targets)
    centres, middles = ((x[:, :2] + x[:, 2:]) / 2 for x in (anchors, targets))
    distance = ((centres[:, None] - middles[None]) ** 2).sum(-1)
    near, start = [], 0
    for size in sizes:
        level = distance[start : start + size]
        near.append(level <= -top(-level, min(size, CANDIDATES))[-1:])
        start += size
    near = xp.concatenate(near)
    count = sum(min(size, CANDIDATES) for size in sizes)
    mean = xp.where(near, overlap, 0).sum(0)[None] / count
    squares = xp.where(near, (overlap - mean) ** 2, 0).sum(0)[None]
    above = overlap >= mean + (squares / (count - 1)) ** 0.5
    return _shared_out(xp, near & above & _inside(centres, targets), overlap)[0]


def task_aligned(xp, top, scores, boxes, points, labels, targets):
    overlap = plain.matrix(xp, boxes, targets)
    t = scores[:, labels] * overlap**6
    t = xp.where(_inside(points, targets), t, 0)
    index, claims = _shared_out(xp, (t >= top(t, ALIGNED)[-1:]) & (t > 0), overlap)
    t, overlap = xp.where(claims, t, 0), xp.where(claims, overlap, 0)
    soft = t / xp.amax(t, 0)[None].clip(1e-30) * xp.amax(overlap, 0)[None]
    return index, xp.amax(soft, 1)


def simota(xp, top, scores, boxes, points, labels, targets, strides):
    overlap = plain.matrix(xp, boxes, targets)
    inside, middles = _inside(points, targets), (targets[:, :2] + targets[:, 2:]) / 2
    away = xp.amax(abs(points[:, None] - middles[None]), -1)
    near = away < 2.5 * strides[:, None]
    candidates = (inside | near).any(1)[:, None]
    others = xp.log((1 - scores).clip(1e-7, 1))
    right = xp.log(scores.clip(1e-7, 1)) - others
    cost = -(others.sum(1)[:, None] + right[:, labels])
    cost = cost - 3 * xp.log(overlap.clip(1e-7, 1))
    cost = xp.where(inside & near, cost, cost + 1e5)
    cost = xp.where(candidates, cost, xp.inf)
    wanted = top(xp.where(candidates, overlap, 0), SUMMED).sum(0)[None].clip(1)
    best = top(-cost, SUMMED)
    taken = xp.cumsum(xp.ones_like(best), 0) <= wanted
    least = xp.amin(xp.where(taken, best, xp.inf), 0)[None]
    return _shared_out(xp, (-cost >= least) & candidates, -cost)[0]


def matrix_nms(xp, boxes, scores):
    """The lowered scores, the best first, with the Gaussian decay."""
    order = xp.argsort(-scores)
    boxes, scores = boxes[order], scores[order]
    overlap = xp.triu(plain.matrix(xp, boxes, boxes), 1)
    most = xp.amax(overlap, 0)[:, None]
    scores = scores * xp.amin(xp.exp((most**2 - overlap**2) / SIGMA), 0)
    return scores[xp.argsort(-scores)]


def _inside(points, boxes):
    points = points[:, None]
    return ((points > boxes[None, :, :2]) & (points < boxes[None, :, 2:])).all(-1)


def _shared_out(xp, claims, worth):
    """One target per anchor: of those that claim it the one of most worth."""
    worth = xp.where(claims, worth, -xp.inf)
    claims = claims & (worth == xp.amax(worth, 1)[:, None])
    return xp.where(claims.any(1), worth.argmax(1), -1), claims
