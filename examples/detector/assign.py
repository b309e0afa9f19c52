"""Which anchor learns which target: the assigners of jaxiou behind one signature.

`(anchors, level_sizes, logits, boxes, batch) -> Assignment`: `logits` and `boxes` are
what the network says, which only one of them looks at. Where a box is to be ignored
anchors are neither positive nor background.
"""

import jax
import jax.numpy as jnp

import jaxiou


def max_iou(anchors, level_sizes, logits, boxes, batch):
    """The target an anchor overlaps most, from an IoU of 0.5 on."""
    del level_sizes, logits, boxes
    return jaxiou.match_anchors(
        anchors, batch["boxes"], where=batch["where"], ignore=batch["ignore"]
    )


def atss(anchors, level_sizes, logits, boxes, batch):
    """A threshold for each target, by what the anchors near it overlap."""
    del logits, boxes
    found = jaxiou.match_atss(
        anchors,
        batch["boxes"],
        level_sizes=level_sizes,
        where=batch["where"] & ~batch["ignore"],
    )
    return _judged(found, anchors, batch)


def task_aligned(anchors, level_sizes, logits, boxes, batch):
    """The anchors that classify and locate a target best so far, with soft scores."""
    del level_sizes
    found = jaxiou.match_task_aligned(
        jax.lax.stop_gradient(jax.nn.sigmoid(logits)),
        jax.lax.stop_gradient(boxes),
        (anchors[:, :2] + anchors[:, 2:]) / 2,
        batch["labels"],
        batch["boxes"],
        where=batch["where"] & ~batch["ignore"],
    )
    return _judged(found, anchors, batch)


ASSIGNERS = {"max_iou": max_iou, "atss": atss, "task_aligned": task_aligned}


def _judged(found, anchors, batch):
    """Background that lies on a box to ignore is no background."""
    crowd = jaxiou.best_match(
        anchors,
        batch["boxes"],
        measure=jaxiou.iof,
        where2=batch["where"] & batch["ignore"],
    )
    covered = (found.indices == -1) & (crowd.values1 >= 0.5)
    return found._replace(indices=jnp.where(covered, -2, found.indices))
