"""The set criterion of DETR: every target is matched with one query, then compared.

N. Carion et al., "End-to-End Object Detection with Transformers", 2020,
arXiv:2005.12872. Pure functions, to be copied, of

    logits   (b, n, classes + 1), the last of which is background
    boxes    (b, n, 4), predicted, (cx, cy, w, h) in units of the image: 0 to 1
    labels   (b, m), integers below `classes`
    targets  (b, m, 4), in the format of the boxes
    where    (b, m), False for targets that are padding, which may hold anything

One compilation serves every number of targets, none included.
"""

import jax
import jax.numpy as jnp
import optax

import jaxiou

# Of the costs that match, and of the losses.
WEIGHTS = {"class_loss": 1.0, "l1_loss": 5.0, "giou_loss": 2.0}
BACKGROUND_WEIGHT = 0.1  # of queries without a target, in the loss of the classes


def corners(boxes):
    """Boxes as jaxiou compares them."""
    return jaxiou.convert(boxes, "cxcywh", "xyxy")


def match(logits, boxes, labels, targets, where):
    """For every query its target, at the least total cost: an `Assignment`.

    The cost of a class is minus its probability, not a logarithm: as the others it
    has bounds.
    """
    probabilities = jax.nn.softmax(logits)
    cost = {
        "class_loss": -jnp.take_along_axis(probabilities, labels[:, None, :], axis=-1),
        "l1_loss": jaxiou.box_l1_cost(boxes, targets),
        "giou_loss": jaxiou.measure_cost(
            corners(boxes), corners(targets), measure=jaxiou.giou
        ),
    }
    return jaxiou.match_one_to_one(total(cost), where=where[:, None, :])


def losses(logits, boxes, labels, targets, where):
    """The three losses of a batch, a dictionary of numbers; `total` adds them up."""
    found = match(logits, boxes, labels, targets, where)
    matched = found.indices >= 0

    background = logits.shape[-1] - 1
    wanted = jaxiou.take_targets(labels, found, fill=background)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    weights = jnp.where(matched, 1.0, BACKGROUND_WEIGHT)
    class_loss = (weights * entropy).sum() / weights.sum()

    targets = jaxiou.take_targets(targets, found, fill=0.0)
    count = jnp.maximum(where.sum(), 1)
    l1 = jnp.abs(boxes - targets).sum(-1)
    giou = jaxiou.giou_loss(corners(boxes), corners(targets), where=matched)
    return {
        "class_loss": class_loss,
        "l1_loss": l1.sum(where=matched) / count,
        "giou_loss": giou.sum() / count,
    }


def total(parts):
    """The weighted sum: of losses the one to descend."""
    return sum(WEIGHTS[name] * part for name, part in parts.items())
