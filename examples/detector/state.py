"""A model, its optimizer, and both on disk: whole or not at all, the newest found."""

import logging

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx

from .config import Config
from .model import Detector, strides_for
from .records import DataError

# What the threads that write cannot do is raised, too.
for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def schedule(updates, peak):
    """The learning rate of each update of the weights."""
    warm = min(100, updates // 10)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warm, updates, peak / 100)


def rates(config):
    """The learning rate of each update in a run."""
    return schedule(-(-config.steps // config.accumulate), config.learning_rate)


def create(config, classes):
    """A fresh model and its optimizer."""
    model = Detector(
        len(classes),
        levels=len(strides_for(config.image_size)),
        **config.network,
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
        remat=config.remat,
        rngs=nnx.Rngs(config.seed),
    )
    update = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.adamw(
            rates(config),
            weight_decay=config.weight_decay,
            mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
        ),
    )
    if config.accumulate > 1:
        steps = optax.MultiSteps(update, config.accumulate)
        update = steps.gradient_transformation()
    return model, nnx.Optimizer(model, update, wrt=nnx.Param)


def checkpoints(folder):
    """The checkpoints of a run; a new one is complete before the old one goes."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder.absolute() / "checkpoints", options=options)


def save(manager, step, parts):
    """Keeps the state after a step of what `create` made."""
    state = nnx.state(parts)
    try:
        manager.save(step, args=ocp.args.StandardSave(state))
    except ValueError as error:  # what the writer makes of a full disk
        reason = str(error).rpartition(": ")[2]
        place = f"{manager.directory}: step {step} could not be kept"
        raise OSError(f"{place} ({reason}); --resume goes on from the last") from error


def clear(manager):
    """Forgets the states of an earlier run, which may be of later steps."""
    for step in manager.all_steps():
        manager.delete(step)


def load(manager, parts):
    """Puts the newest state into what `create` made; returns its step."""
    step = manager.latest_step()
    if step is None:
        raise DataError(f"{manager.directory}: there is no checkpoint")
    state = nnx.state(parts)
    state = manager.restore(step, args=ocp.args.StandardRestore(state))
    nnx.update(parts, state)
    return step


def restore(folder):
    """The trained model of a run's folder, its configuration and its classes."""
    try:
        config, classes = Config.load(folder / "config.json")
    except FileNotFoundError as error:
        raise DataError(f"{folder}: there is no run ({error})") from None
    parts = create(config, classes)
    with checkpoints(folder) as manager:
        load(manager, parts)
    return parts[0], config, classes
