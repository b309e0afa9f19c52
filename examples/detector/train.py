"""The training step: anchors matched, scores and boxes learned, all compiled once."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import jaxiou

from .assign import ASSIGNERS, max_iou
from .data import Batches
from .model import anchors_for, level_sizes
from .precision import evaluate
from .records import DataError
from .state import checkpoints, clear, create, load, rates, save

REPORT_EVERY = 20  # steps


class Diverged(RuntimeError):
    """The loss is no number any more; the message says what was kept."""


def detection_loss(model, batch, box_loss, box_weight=1.0, assign=max_iou):
    """The loss of a batch and its two parts, per anchor that has a target.

    Every target is padding unless `where`; the shapes say nothing of how many there
    are, so one compilation serves them all.
    """
    size = batch["images"].shape[1:3]
    anchors = anchors_for(size)
    logits, deltas = model(batch["images"])
    boxes = jaxiou.decode(deltas, anchors)
    assignment = assign(anchors, level_sizes(size), batch)
    labels = jaxiou.take_targets(batch["labels"], assignment, fill=-1)
    targets = jaxiou.take_targets(batch["boxes"], assignment, fill=0.0)
    positive, judged = assignment.indices >= 0, assignment.indices >= -1

    wanted = jax.nn.one_hot(labels, logits.shape[-1])
    class_losses = optax.sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2.0)
    count = jnp.maximum(positive.sum(), 1)
    class_loss = class_losses.sum(where=judged[..., None]) / count
    box = box_loss(boxes, targets, where=positive).sum() / count
    parts = {"class_loss": class_loss, "box_loss": box}
    return class_loss + box_weight * box, parts


@nnx.jit(static_argnames=("box_loss", "assign"))
def train_step(parts, batch, box_loss, box_weight=1.0, assign=max_iou):
    """Updates what `create` made and returns the losses."""
    model, optimizer = parts
    gradient = nnx.value_and_grad(detection_loss, has_aux=True)
    (loss, shares), gradients = gradient(model, batch, box_loss, box_weight, assign)
    optimizer.update(model, gradients)
    return {"loss": loss, **shares}


def sharing(config):
    """How a batch is spread over devices, and the weights; None for one device."""
    several = jax.process_count() > 1  # whose devices all take part
    count = jax.device_count() if several else config.devices or jax.device_count()
    if count == 1:
        return None
    if count > jax.device_count() or config.batch_size % count:
        raise DataError(
            f"--devices {count}: there are {jax.device_count()}, and they share "
            f"batches of {config.batch_size} images; see --devices and --batch-size"
        )
    devices = jax.devices()[:count]
    mesh = jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )
    return NamedSharding(mesh, P("data")), NamedSharding(mesh, P())


def spread_over(spread, parts):
    """Puts what `create` made on every device."""
    if spread:
        state = jax.device_get(nnx.state(parts))
        nnx.update(parts, jax.device_put(state, spread[1]))


def check(config, step, batch, loss):
    """Stops where the loss is no number, and keeps the batch that made it so."""
    if np.isfinite(loss):
        return
    path = config.out / f"diverged-{jax.process_index()}.npz"
    np.savez(path, **batch)
    raise Diverged(
        f"the loss of step {step} is {loss}; its batch is in {path}, the last state "
        "before it in the checkpoints. A lower --learning-rate is the usual cure"
    )


def train(config, dataset, log):
    """Trains a model and keeps it as a checkpoint in `config.out`.

    `config` has its `batch_size` and `image_size`; `log` takes each line of metrics, a
    dictionary. With `config.resume` it goes on after the last checkpoint.
    """
    parts = create(config, dataset.classes)
    size, spread = config.image_size, sharing(config)
    share = jax.process_index(), jax.process_count()
    drawn = config.batch_size, config.seed, share, config.augment
    batches = Batches(dataset, size, *drawn)
    assign = ASSIGNERS[config.assigner]
    chosen = config.box_loss, config.box_weight, assign
    rate_of, began = rates(config), time.perf_counter()
    marks = {
        config.steps * i // config.evaluations for i in range(1, config.evaluations)
    }
    with checkpoints(config.out) as manager:
        spread_over(spread, parts)
        if config.resume:
            first = load(manager, parts)
        else:
            first = 0
            clear(manager)
            if jax.process_index() == 0:
                config.save(config.out / "config.json", dataset.classes)
        bar = tqdm(
            batches.run(first, config.steps, config.workers),
            initial=first,
            total=config.steps,
            unit="step",
            disable=jax.process_index() > 0,
        )
        before = None
        for step, batch in enumerate(bar, first + 1):
            arrays = batch
            if spread:
                arrays = jax.make_array_from_process_local_data(spread[0], batch)
            losses = train_step(parts, arrays, *chosen)
            # One step late, so that the next one is prepared while this one runs.
            if before:
                check(config, *before)
            before = step, batch, losses["loss"]
            if step % REPORT_EVERY == 0 or step == config.steps:
                losses = {name: round(float(x), 5) for name, x in losses.items()}
                bar.set_postfix(loss=f"{losses['loss']:.3f}")
                rate = round(float(rate_of(step // config.accumulate)), 7)
                seconds = round(time.perf_counter() - began, 2)
                log({"step": step, **losses, "learning_rate": rate, "seconds": seconds})
            if step in marks and jax.process_index() == 0:
                report, _ = evaluate(parts[0], dataset.val, dataset.classes, size)
                log({"step": step, "split": "val", **report})
                bar.set_description(f"AP50 {report['AP50'] or 0:.3f}")
            if step % config.save_every == 0 or step == config.steps:
                check(config, *before)
                save(manager, step, parts)
    return parts[0]
