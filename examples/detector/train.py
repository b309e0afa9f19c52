"""The training step: anchors matched, scores and boxes learned, all compiled once."""

import time

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tqdm import tqdm

import jaxiou

from .config import Config
from .data import Batches
from .evaluate import evaluate
from .model import Detector, anchors_for, strides_for

REPORT_EVERY = 20  # steps


def detection_loss(model, batch, box_loss, box_weight=1.0):
    """The loss of a batch and its two parts, per anchor that has a target.

    Every target is padding unless `where`; the shapes say nothing of how many there
    are, so one compilation serves them all.
    """
    anchors = anchors_for(batch["images"].shape[1:3])
    logits, deltas = model(batch["images"])
    assignment = jaxiou.match_anchors(
        anchors, batch["boxes"], where=batch["where"], ignore=batch["ignore"]
    )
    labels = jaxiou.take_targets(batch["labels"], assignment, fill=-1)
    targets = jaxiou.take_targets(batch["boxes"], assignment, fill=0.0)
    positive, judged = assignment.indices >= 0, assignment.indices >= -1
    count = jnp.maximum(positive.sum(), 1)

    wanted = jax.nn.one_hot(labels, logits.shape[-1])
    class_losses = optax.sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2.0)
    class_loss = class_losses.sum(where=judged[..., None]) / count

    boxes = jaxiou.decode(deltas, anchors)
    box = box_loss(boxes, targets, where=positive).sum() / count
    parts = {"class_loss": class_loss, "box_loss": box}
    return class_loss + box_weight * box, parts


@nnx.jit(static_argnames="box_loss")
def train_step(model, optimizer, batch, box_loss, box_weight=1.0):
    """Updates the model and returns the losses."""
    gradient = nnx.value_and_grad(detection_loss, has_aux=True)
    (loss, parts), gradients = gradient(model, batch, box_loss, box_weight)
    optimizer.update(model, gradients)
    return {"loss": loss, **parts}


def schedule(config):
    """The learning rate of each step."""
    warm = min(100, config.steps // 10)
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(0.0, peak, warm, config.steps, peak / 100)


def create(config, classes):
    """A fresh model and its optimizer."""
    model = Detector(
        len(classes),
        levels=len(strides_for(config.image_size)),
        width=config.width,
        depth=config.depth,
        rngs=nnx.Rngs(config.seed),
    )
    update = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.adamw(
            schedule(config),
            weight_decay=config.weight_decay,
            mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
        ),
    )
    return model, nnx.Optimizer(model, update, wrt=nnx.Param)


def train(config, dataset, log):
    """Trains a model and keeps it as a checkpoint in `config.out`.

    `config` has its `batch_size` and `image_size`; `log` takes each line of metrics, a
    dictionary.
    """
    model, optimizer = create(config, dataset.classes)
    size = config.image_size
    batches = Batches(dataset, size, config.batch_size, config.seed)
    rates, began = schedule(config), time.perf_counter()
    marks = {
        config.steps * i // config.evaluations for i in range(1, config.evaluations)
    }
    bar = tqdm(batches.run(range(config.steps)), total=config.steps, unit="step")
    for step, batch in enumerate(bar, 1):
        losses = train_step(model, optimizer, batch, config.box_loss, config.box_weight)
        if step % REPORT_EVERY == 0 or step == config.steps:
            losses = {name: round(float(value), 5) for name, value in losses.items()}
            bar.set_postfix(loss=f"{losses['loss']:.3f}")
            rate = round(float(rates(step)), 7)
            seconds = round(time.perf_counter() - began, 2)
            log({"step": step, **losses, "learning_rate": rate, "seconds": seconds})
        if step in marks:
            report, _ = evaluate(model, dataset.val, dataset.classes, size)
            log({"step": step, "split": "val", **report})
            bar.set_description(f"AP50 {report['AP50'] or 0:.3f}")
            save(config.out, model, optimizer)
    save(config.out, model, optimizer)
    return model


def save(folder, model, optimizer):
    """Keeps the state of a run as an Orbax checkpoint, replacing the one before."""
    with ocp.StandardCheckpointer() as checkpointer:
        state = nnx.state((model, optimizer))
        checkpointer.save(folder.absolute() / "checkpoint", state, force=True)


def restore(folder):
    """The trained model of a run's folder, its configuration and its classes."""
    config, classes = Config.load(folder / "config.json")
    model, optimizer = create(config, classes)
    state = nnx.state((model, optimizer))
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(folder.absolute() / "checkpoint", state)
    nnx.update((model, optimizer), state)
    return model, config, classes
