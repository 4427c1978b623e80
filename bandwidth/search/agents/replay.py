"""Replay memory: a ring buffer of transitions on the device."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Transition(NamedTuple):
  """An action and its result, or a batch of them along a first axis.

  Attributes:
    observation: s, before the action, float32 [F].
    action: a, float32 [], in [0, 1].
    reward: r of the action, float32 [].
    next_observation: s', after the action, float32 [F].
    done: bool []; True at the end of an episode.
  """

  observation: jax.Array
  action: jax.Array
  reward: jax.Array
  next_observation: jax.Array
  done: jax.Array


class Replay(NamedTuple):
  """The last C transitions.

  Attributes:
    transitions: leaves [C, …]; the n-th transition ever added is at n modulo C.
    added: number of transitions ever added, int32 [].
  """

  transitions: Transition
  added: jax.Array


def init_replay(capacity: int, features: int) -> Replay:
  """Returns an empty memory.

  Args:
    capacity: C, transitions held before the oldest are overwritten, positive.
    features: F, length of an observation.

  Raises:
    ValueError: `capacity` is not positive.
  """
  if capacity < 1:
    raise ValueError(f'capacity={capacity!r} is not positive')
  transitions = Transition(
    observation=jnp.zeros((capacity, features), jnp.float32),
    action=jnp.zeros(capacity, jnp.float32),
    reward=jnp.zeros(capacity, jnp.float32),
    next_observation=jnp.zeros((capacity, features), jnp.float32),
    done=jnp.zeros(capacity, bool),
  )
  return Replay(transitions, jnp.zeros((), jnp.int32))


def add(replay: Replay, transitions: Transition) -> Replay:
  """Stores transitions, overwriting the oldest.

  Args:
    replay: memory of capacity C.
    transitions: leaves [N, …], N at most C, the oldest first.

  Raises:
    ValueError: there are more transitions than the memory can hold.

  >>> steps = Transition(*[jnp.arange(2.0)[:, None], *[jnp.arange(2.0)] * 2,
  ...                      jnp.arange(2.0)[:, None], jnp.array([False, True])])
  >>> replay = add(add(init_replay(3, 1), steps), steps)
  >>> replay.transitions.reward.tolist(), int(replay.added)
  ([1.0, 1.0, 0.0], 4)
  """
  count, capacity = transitions.reward.size, replay.transitions.reward.size
  if count > capacity:
    raise ValueError(
      f'transitions: {count} do not fit a capacity of {capacity}'
    )
  places = (replay.added + jnp.arange(count)) % capacity
  stored = jax.tree.map(
    lambda old, new: old.at[places].set(new, unique_indices=True),
    replay.transitions,
    transitions,
  )
  return Replay(stored, replay.added + count)


def sample_independent(
  key: jax.Array, replay: Replay, batch: int
) -> Transition:
  """Draws with replacement; arguments and result as of `sample_distinct`."""
  return _take(replay, _independent(key, replay, batch))


def sample_distinct(key: jax.Array, replay: Replay, batch: int) -> Transition:
  """Draws without replacement; with it while the memory holds less than B.

  Args:
    key: typed PRNG key, of `jax.random.key`.
    replay: a memory that is not empty.
    batch: B, number of transitions to draw, at most the capacity.

  Returns:
    Leaves [B, …].

  Raises:
    ValueError: `batch` is more than the memory can hold.
  """
  capacity = replay.transitions.reward.size
  if batch > capacity:
    raise ValueError(f'batch={batch} is more than the capacity of {capacity}')
  order_key, spare_key = jax.random.split(key)
  order = jax.random.uniform(order_key, (capacity,))
  order = jnp.where(jnp.arange(capacity) < replay.added, order, -1.0)
  distinct = jax.lax.top_k(order, batch)[1]
  spare = _independent(spare_key, replay, batch)
  return _take(replay, jnp.where(replay.added >= batch, distinct, spare))


Sampler = Callable[[jax.Array, Replay, int], Transition]
"""`(key, replay, batch) -> transitions`."""

SAMPLERS: dict[str, Sampler] = {
  'distinct': sample_distinct,
  'independent': sample_independent,
}
"""Ways to draw a minibatch, by name."""


def _independent(key: jax.Array, replay: Replay, batch: int) -> jax.Array:
  held = jnp.minimum(replay.added, replay.transitions.reward.size)
  return jax.random.randint(key, (batch,), 0, jnp.maximum(held, 1))


def _take(replay: Replay, places: jax.Array) -> Transition:
  return jax.tree.map(lambda x: x[places], replay.transitions)
