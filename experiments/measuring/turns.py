"""Programs that take turns, so that a machine's moods meet all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Turns(NamedTuple):
  """Seconds of programs.

  Attributes:
    seconds: float64 [turns] of each, by name.
  """

  seconds: Mapping[Any, np.ndarray]

  def median(self, name: Any) -> float:
    """Seconds of a program."""
    return float(np.median(self.seconds[name]))

  def fastest(self, name: Any) -> float:
    """Seconds of a program in its best turn."""
    return float(np.min(self.seconds[name]))

  def ratio(self, name: Any, rival: Any) -> float:
    """The median of ratios to a rival within a turn."""
    return float(np.median(self.seconds[name] / self.seconds[rival]))


def take_turns(
  timers: Mapping[Any, Callable[[], float]], repeats: int, *, warm_up: int = 1
) -> Turns:
  """Calls timers in turn.

  Args:
    timers: by name; each runs something once and returns its seconds.
    repeats: turns that count.
    warm_up: turns before them.
  """
  seconds: dict[Any, list[float]] = {name: [] for name in timers}
  for turn in range(warm_up + repeats):
    for name, timer in timers.items():
      spent = timer()
      if turn >= warm_up:
        seconds[name].append(spent)
  return Turns({name: np.array(own) for name, own in seconds.items()})


def in_place(
  call: Callable[[Any], Any],
  state: Any,
  next_state: Callable[[Any], Any] = lambda out: out,
) -> Callable[[], float]:
  """Returns a timer of a call that may overwrite what it is given.

  Args:
    call: state -> result, which is waited for.
    state: of the first call.
    next_state: result -> state of the next call.
  """

  def once() -> float:
    nonlocal state
    start = time.perf_counter()
    out = jax.block_until_ready(call(state))
    spent = time.perf_counter() - start
    state = next_state(out)
    return spent

  return once


def spent_by(call: Callable[[], Any]) -> float:
  """Returns the seconds of a call whose result is waited for."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def timed(call: Callable[[], Any]) -> Callable[[], float]:
  """Returns a timer of a call whose result is waited for."""
  return lambda: spent_by(call)
