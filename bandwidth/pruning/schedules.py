"""Schedules: a step becomes a sparsity, or a fraction of weights to exchange.

A schedule is a function of the step, an int or a traced int32[], as optax's
are. Steps count updates from 0. Results are float32[].
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bandwidth.pruning import structures

Schedule = Callable[[Any], jax.Array]
"""`step -> float32[]`."""


def one_shot(sparsity: float, *, step: int = 0) -> Schedule:
  """Prunes all at once.

  Args:
    sparsity: sparsity from `step` on, in [0, 1]; 0 before.
    step: the update that prunes, counted from 0.

  Raises:
    ValueError: an argument is out of range.

  >>> schedule = one_shot(0.9, step=10)
  >>> [round(float(schedule(t)), 3) for t in (9, 10, 11)]
  [0.0, 0.9, 0.9]
  """
  structures.check_sparsity(sparsity)
  _check_steps(step=step)
  return lambda t: jnp.where(jnp.asarray(t) >= step, jnp.float32(sparsity), 0.0)


def cubic(
  final: float, *, begin: int = 0, end: int, initial: float = 0.0
) -> Schedule:
  r"""Prunes fast at first, slowly at last.

  .. math:: s_t = s_f + (s_i - s_f)\Bigl(1 - \frac{t - t_0}{t_1 - t_0}\Bigr)^3

  with t clamped to [t_0, t_1]. Masks need not change every step: see `every`.

  Args:
    final: s_f, the sparsity from t_1 on, in [0, 1].
    begin: t_0, the update after which the sparsity rises, not negative.
    end: t_1, after t_0; leave steps after it to recover in.
    initial: s_i, the sparsity until t_0, in [0, 1].

  Raises:
    ValueError: an argument is out of range.

  References:
    Zhu & Gupta, To prune, or not to prune, 2017, equation 1,
    https://arxiv.org/abs/1710.01878

  >>> schedule = cubic(0.8, begin=0, end=100)
  >>> [round(float(schedule(t)), 4) for t in (0, 50, 100, 200)]
  [0.0, 0.7, 0.8, 0.8]
  """
  _check_range(initial, final)
  _check_steps(begin=begin)
  if end <= begin:
    raise ValueError(f'end={end!r} is not after begin={begin!r}')

  def schedule(t: Any) -> jax.Array:
    done = (jnp.asarray(t) - begin).astype(jnp.float32) / (end - begin)
    left = 1 - jnp.clip(done, 0, 1)
    return jnp.float32(final) + jnp.float32(initial - final) * left**3

  return schedule


def iterative(
  final: float,
  *,
  steps: int,
  frequency: int,
  begin: int = 0,
  initial: float = 0.0,
) -> Schedule:
  r"""Prunes in steps that each keep the same share of what is left.

  .. math:: 1 - s_k = (1 - s_i) \Bigl(\frac{1 - s_f}{1 - s_i}\Bigr)^{k/n}

  with k = 1 at `begin`, one more every `frequency` steps, and at last n.

  Args:
    final: s_f, the sparsity at last, in [0, 1).
    steps: n, the number of times to prune, positive.
    frequency: number of updates from one pruning to the next, positive.
    begin: the update that prunes first; before it the sparsity is `initial`.
    initial: s_i, the sparsity before `begin`, in [0, 1).

  Raises:
    ValueError: an argument is out of range.

  References:
    Han et al., 2015, https://arxiv.org/abs/1506.02626; Frankle & Carbin, The
    Lottery Ticket Hypothesis, 2019, https://arxiv.org/abs/1803.03635

  >>> schedule = iterative(0.75, steps=2, frequency=10, begin=5)
  >>> [round(float(schedule(t)), 4) for t in (4, 5, 14, 15, 99)]
  [0.0, 0.5, 0.5, 0.75, 0.75]
  """
  _check_range(initial, final)
  if initial == 1 or final == 1:
    raise ValueError(f'initial={initial}, final={final}: no ratio leads to 1')
  ratio = (1 - final) / (1 - initial)
  targets = [1 - (1 - initial) * ratio ** (k / steps) for k in range(steps)]
  return _staircase([*targets, final], frequency=frequency, begin=begin)


def iterative_linear(
  final: float,
  *,
  steps: int,
  frequency: int,
  begin: int = 0,
  initial: float = 0.0,
) -> Schedule:
  r"""Prunes in steps that each remove the same number of weights.

  .. math:: s_k = s_i + (s_f - s_i) k / n

  Args:
    final: s_f, the sparsity at last, in [0, 1].
    steps: n, the number of times to prune, positive.
    frequency: number of updates from one pruning to the next, positive.
    begin: the update that prunes first; before it the sparsity is `initial`.
    initial: s_i, the sparsity before `begin`, in [0, 1].

  Raises:
    ValueError: an argument is out of range.

  >>> schedule = iterative_linear(0.8, steps=4, frequency=10)
  >>> [round(float(schedule(t)), 4) for t in (0, 10, 25, 30, 99)]
  [0.2, 0.4, 0.6, 0.8, 0.8]
  """
  _check_range(initial, final)
  targets = [initial + (final - initial) * k / steps for k in range(steps)]
  return _staircase([*targets, final], frequency=frequency, begin=begin)


def every(schedule: Schedule, frequency: int, *, begin: int = 0) -> Schedule:
  r"""Holds a schedule's value, so that masks change every so many updates.

  .. math:: s'_t = s(t_0 + \lfloor (t - t_0) / f \rfloor f)

  Args:
    schedule: the schedule to hold.
    frequency: f, updates from one change to the next.
    begin: t_0, an update at which the value may change.

  Raises:
    ValueError: an argument is out of range.

  >>> schedule = every(cubic(0.8, end=100), 50)
  >>> [round(float(schedule(t)), 4) for t in (49, 50, 99, 100)]
  [0.0, 0.7, 0.7, 0.8]
  """
  _check_steps(begin=begin)
  _check_positive(frequency=frequency)
  return lambda t: schedule(
    begin + (jnp.asarray(t) - begin) // frequency * frequency
  )


def cosine_fraction(fraction: float, *, end: int) -> Schedule:
  r"""Lets the fraction of exchanged weights fall to 0 along a cosine.

  .. math:: f(t) = \frac{\alpha}{2}\bigl(1 + \cos(t \pi / T_{end})\bigr)

  Args:
    fraction: α, the fraction at step 0, in [0, 1].
    end: T_end, the step from which the fraction is 0, positive.

  Raises:
    ValueError: an argument is out of range.

  References:
    Evci et al., Rigging the Lottery, 2020, section 3,
    https://arxiv.org/abs/1911.11134

  >>> schedule = cosine_fraction(0.3, end=100)
  >>> [round(float(schedule(t)), 4) for t in (0, 50, 100)]
  [0.3, 0.15, 0.0]
  """
  structures.check_sparsity(fraction, argument='fraction')
  _check_positive(end=end)

  def schedule(t: Any) -> jax.Array:
    done = jnp.clip(jnp.asarray(t).astype(jnp.float32) / end, 0, 1)
    return jnp.float32(fraction / 2) * (1 + jnp.cos(math.pi * done))

  return schedule


def _staircase(targets: list[float], *, frequency: int, begin: int) -> Schedule:
  _check_steps(begin=begin)
  _check_positive(frequency=frequency, steps=len(targets) - 1)

  def schedule(t: Any) -> jax.Array:
    stair = (jnp.asarray(t) - begin) // frequency + 1
    index = jnp.clip(stair, 0, len(targets) - 1)
    return jnp.asarray(targets, jnp.float32)[index]

  return schedule


def _check_range(initial: float, final: float) -> None:
  structures.check_sparsity(initial, argument='initial')
  structures.check_sparsity(final, argument='final')


def _check_steps(**steps: int) -> None:
  for name, value in steps.items():
    if value < 0:
      raise ValueError(f'{name}={value!r} is negative')


def _check_positive(**values: int) -> None:
  for name, value in values.items():
    if value < 1:
      raise ValueError(f'{name}={value!r} is not positive')
