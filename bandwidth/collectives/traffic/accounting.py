"""Bytes that a worker sends: read from compiled programs, and in closed form.

The two are independent, and a run reports both. A byte counts where it leaves a
worker; what it receives is as much. Counted is the payload of the algorithms
that send least: framing on the network adds a few per cent, padding of tiled
layouts on a TPU is not included.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

from bandwidth.collectives.dense import dense_wire_bytes
from bandwidth.collectives.traffic.closed_forms import (
  all_gather_bytes,
  all_reduce_bytes,
  all_to_all_bytes,
  reduce_scatter_bytes,
)
from bandwidth.collectives.traffic.hlo import collectives, sent_fraction

__all__ = [
  'WireRow',
  'all_gather_bytes',
  'all_reduce_bytes',
  'all_to_all_bytes',
  'dense_wire_bytes',
  'reduce_scatter_bytes',
  'wire_bytes',
  'wire_table',
]


class WireRow(NamedTuple):
  """What a worker sends in arrays of one kind.

  Attributes:
    kind: kind of collective: 'all-reduce', 'all-gather', ...
    dtype: dtype of the elements sent, 'float32'.
    shape: shape of the array that a worker puts in.
    group_size: workers that exchange with each other.
    count: such arrays in one run of the program.
    bytes: sent by one worker in one run, all of them together. 2 (P-1)/P of a
      number that P does not divide is not whole.
    between_slices: sent from one TPU slice to another.
  """

  kind: str
  dtype: str
  shape: tuple[int, ...]
  group_size: int
  count: int
  bytes: float
  between_slices: bool


def wire_bytes(compiled: Any, *, unknown_trips: int | None = None) -> int:
  """Returns the bytes that one worker sends in one run of a compiled program.

  Everything is counted: gradients, metrics, batch-norm statistics; loops as
  often as they run; of a conditional the branch that sends most. Workers that
  `jax.vmap` simulates on one device send nothing.

  Args:
    compiled: a `jax.stages.Compiled`, or its text (optimized HLO).
    unknown_trips: executions to assume of a loop whose number depends on data.

  Returns:
    Bytes, rounded up at the end.

  Raises:
    ValueError: `compiled` is no compiled program, or has collectives in a loop
      that runs an unknown number of times, and `unknown_trips` is not given.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> f = jax.pmap(lambda x: jax.lax.psum(x, 'data'), axis_name='data')
  >>> wire_bytes(f.lower(jnp.ones((8, 4096))).compile())
  28672
  """
  found = collectives(compiled, unknown_trips=unknown_trips)
  return math.ceil(sum(c.sent_bytes * c.count for c in found))


def wire_table(
  compiled: Any, *, unknown_trips: int | None = None
) -> list[WireRow]:
  """Returns what one worker sends in one run of a compiled program, by array.

  Args:
    compiled: a `jax.stages.Compiled`, or its text (optimized HLO).
    unknown_trips: executions to assume of a loop whose number depends on data.

  Returns:
    Rows in the order of the program. Their bytes add up to `wire_bytes`.

  Raises:
    ValueError: as `wire_bytes`.
  """
  totals: dict[tuple[Any, ...], tuple[int, Fraction]] = {}
  for c in collectives(compiled, unknown_trips=unknown_trips):
    fraction = sent_fraction(c.kind, c.group_size)
    for array in c.operands:
      key = (c.kind, array.dtype, array.shape, c.group_size, c.between_slices)
      count, sent = totals.get(key, (0, Fraction(0)))
      sent += c.count * array.nbytes * fraction
      totals[key] = (count + c.count, sent)
  return [
    WireRow(*key[:4], count=count, bytes=float(sent), between_slices=key[4])
    for key, (count, sent) in totals.items()
  ]
