"""Which anchor learns which target: the assigners of jaxiou behind one signature.

`(anchors, level_sizes, batch) -> Assignment`. Where a box is to be ignored anchors are
neither positive nor background.
"""

import jax.numpy as jnp

import jaxiou


def max_iou(anchors, level_sizes, batch):
    """The target an anchor overlaps most, from an IoU of 0.5 on."""
    del level_sizes
    return jaxiou.match_anchors(
        anchors, batch["boxes"], where=batch["where"], ignore=batch["ignore"]
    )


def atss(anchors, level_sizes, batch):
    """A threshold for each target, by what the anchors near it overlap."""
    found = jaxiou.match_atss(
        anchors,
        batch["boxes"],
        level_sizes=level_sizes,
        where=batch["where"] & ~batch["ignore"],
    )
    # Background that lies on a box to ignore is no background.
    crowd = jaxiou.best_match(
        anchors,
        batch["boxes"],
        measure=jaxiou.iof,
        where2=batch["where"] & batch["ignore"],
    )
    covered = (found.indices == -1) & (crowd.values1 >= 0.5)
    return found._replace(indices=jnp.where(covered, -2, found.indices))


ASSIGNERS = {"max_iou": max_iou, "atss": atss}
