"""The replay memory against a deque."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.search.agents import replay as replay_lib
from bandwidth.search.agents.replay import Transition


def transitions(numbers):
  """Transitions that can be told apart by any of their fields."""
  x = jnp.asarray(numbers, jnp.float32)
  return Transition(
    observation=jnp.stack([x, x + 0.25], axis=1),
    action=-x,
    reward=x + 0.5,
    next_observation=jnp.stack([x + 1, x + 1.25], axis=1),
    done=x % 2 == 0,
  )


def numbers(batch):
  return (batch.reward - 0.5).tolist()


def filled(capacity, sizes):
  memory = replay_lib.init_replay(capacity, 2)
  held, n = collections.deque(maxlen=capacity), 0
  for size in sizes:
    memory = replay_lib.add(memory, transitions(range(n, n + size)))
    held.extend(range(n, n + size))
    n += size
  return memory, held


def test_the_oldest_are_overwritten():
  memory, held = filled(7, [3, 3, 3, 7, 3])
  assert int(memory.added) == 19
  assert sorted(numbers(memory.transitions)) == sorted(held)
  # All fields of a place belong together.
  expected = transitions(jnp.array(numbers(memory.transitions)))
  jax.tree.map(np.testing.assert_array_equal, memory.transitions, expected)
  # The n-th lies at n modulo 7.
  assert numbers(memory.transitions) == [14, 15, 16, 17, 18, 12, 13]


@pytest.mark.parametrize('sampling', ['distinct', 'independent'])
@pytest.mark.parametrize('sizes', [[5], [6, 6]])
def test_samples_are_held(sampling, sizes):
  memory, held = filled(8, sizes)
  sample = replay_lib.SAMPLERS[sampling]
  keys = jax.random.split(jax.random.key(0), 2000)
  batches = jax.vmap(lambda key: sample(key, memory, 4))(keys)
  drawn = np.array(numbers(batches))
  distinct = [len(set(row)) for row in drawn.tolist()]
  assert set(distinct) == ({4} if sampling == 'distinct' else {1, 2, 3, 4})
  values, counts = np.unique(drawn, return_counts=True)
  assert values.tolist() == sorted(held)
  # Uniform: 8,000 draws, within five standard deviations.
  mean = 8000 / len(held)
  assert np.all(np.abs(counts - mean) < 5 * np.sqrt(mean))
  np.testing.assert_array_equal(batches.action, -drawn)


def test_too_few_are_drawn_repeatedly():
  memory, _ = filled(8, [3])
  keys = jax.random.split(jax.random.key(1), 20)
  batches = jax.vmap(lambda key: replay_lib.sample_distinct(key, memory, 5))(
    keys
  )
  assert set(np.ravel(numbers(batches))) == {0, 1, 2}


def test_errors():
  memory = replay_lib.init_replay(3, 2)
  with pytest.raises(ValueError, match='4 do not fit a capacity of 3'):
    replay_lib.add(memory, transitions(range(4)))
  with pytest.raises(ValueError, match='batch=4 is more'):
    replay_lib.sample_distinct(jax.random.key(0), memory, 4)
  with pytest.raises(ValueError, match='capacity=0 is not positive'):
    replay_lib.init_replay(0, 2)
