"""A small object detector: Flax NNX layers, Optax, and jaxiou for everything boxes."""
