"""Which examples a step sees: pure functions of (seed, step).

A training set of N examples and a global batch of B make S = N // B steps an
epoch. Step t, counted from 0 over the whole run, belongs to epoch t // S and
takes entries (t mod S) B to (t mod S) B + B of that epoch's order. The
N - S B last entries of each order are dropped. Because nothing else enters, a
run that resumes needs no state of an iterator.
"""

import functools

import numpy as np

_HOLD_OUT_SEED = [0, 0, 1]


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
  """Returns the order in which an epoch visits the examples.

  The permutation is that of NumPy's default generator (PCG64) seeded by the
  pair (seed, epoch).

  Args:
    seed: the run's seed, 0 or more.
    epoch: epochs before this one.
    length: examples in the set, N.

  Returns:
    int32 [N], a permutation of 0 to N - 1; a new array at each call.

  Raises:
    ValueError: an argument is negative.

  >>> epoch_order(0, 0, 6)
  array([3, 2, 5, 4, 0, 1], dtype=int32)
  """
  for name, value in (('seed', seed), ('epoch', epoch), ('length', length)):
    if value < 0:
      raise ValueError(f'{name}={value} is negative')
  generator = np.random.default_rng([seed, epoch])
  return generator.permutation(length).astype(np.int32)


@functools.lru_cache(maxsize=4)
def _kept_order(seed: int, epoch: int, length: int) -> np.ndarray:
  order = epoch_order(seed, epoch, length)
  order.setflags(write=False)
  return order


def step_indices(
  *, seed: int, step: int, batch_size: int, length: int
) -> np.ndarray:
  """Returns the examples of one step's global batch.

  Args:
    seed: the run's seed, 0 or more.
    step: steps before this one, in the whole run.
    batch_size: examples in a global batch, B.
    length: examples in the set, N.

  Returns:
    int32 [B], not to be written to.

  Raises:
    ValueError: an argument is negative, or B is not in 1 to N.

  >>> step_indices(seed=0, step=1, batch_size=2, length=6)
  array([5, 4], dtype=int32)
  """
  if not 1 <= batch_size <= length:
    raise ValueError(
      f'batch_size={batch_size} is not in 1 to {length}, the number of examples'
    )
  if step < 0:
    raise ValueError(f'step={step} is negative')
  epoch, position = divmod(step, length // batch_size)
  first = position * batch_size
  return _kept_order(seed, epoch, length)[first : first + batch_size]


def held_out(length: int, validation: int) -> tuple[np.ndarray, np.ndarray]:
  """Divides a training set into what is trained on and what is held out.

  The first `validation` entries of one fixed permutation are held out,
  whatever the seed of the run: hyperparameters of all runs are compared on the
  same examples, and a smaller held-out set is part of every larger one.

  Args:
    length: examples in the set, N.
    validation: examples to hold out, 0 to N - 1.

  Returns:
    Two int32 arrays, [N - validation] and [validation], each ascending.

  Raises:
    ValueError: `validation` is out of range.

  >>> held_out(5, 2)
  (array([0, 2, 4], dtype=int32), array([1, 3], dtype=int32))
  """
  if not 0 <= validation < max(length, 1):
    raise ValueError(
      f'dataset.validation={validation} is not in 0 to {length - 1}: the set '
      f'has {length} training examples, and some must be left to train on'
    )
  order = np.random.default_rng(_HOLD_OUT_SEED).permutation(length)
  order = order.astype(np.int32)
  return np.sort(order[validation:]), np.sort(order[:validation])
