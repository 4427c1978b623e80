"""Which exchange is fastest, from bytes in closed form and measured speeds.

A link that is fast enough needs no compression: selecting takes longer than
sending everything. The choice is made for each density of a run, where its
steps are compiled.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bandwidth import tree
from bandwidth.base import GradientReducer, Params
from bandwidth.collectives.sparse import sparse_all_reduce

CANDIDATES = ('dense', 'all_gather', 'owner_sharded')


class Line(NamedTuple):
  """Seconds as a linear function.

  Attributes:
    start: seconds for nothing.
    each: seconds for each byte, or each element.
  """

  start: float
  each: float

  def __call__(self, count: float) -> float:
    """Returns the seconds that `count` takes."""
    return self.start + self.each * count


class Speeds(NamedTuple):
  """What was measured on the workers of a run.

  Attributes:
    all_reduce: of bytes that a worker sends in a dense all-reduce.
    message: of bytes that a worker sends in an all-gather or an all-to-all.
    update: of elements that a dense reducer reads and writes beside its
      all-reduce.
    compress: of elements that a worker accumulates and selects from, at the
      density in question, and of the mean that is put together.
  """

  all_reduce: Line
  message: Line
  update: Line
  compress: Line


class Choice(NamedTuple):
  """The fastest exchange.

  Attributes:
    exchange: one of `CANDIDATES`.
    seconds: predicted for a step, by candidate.
  """

  exchange: str
  seconds: Mapping[str, float]


def wire_bytes_of(
  reducer: GradientReducer, params: Params, workers: int
) -> int:
  """Returns the closed form of a reducer.

  Raises:
    ValueError: it has none.
  """
  if reducer.wire_bytes is None:
    raise ValueError('reducer: it has no closed form of its bytes')
  return reducer.wire_bytes(params, workers=workers)


def choose_exchange(
  params: Params,
  *,
  density: float,
  workers: int,
  speeds: Speeds,
  **arguments: Any,
) -> Choice:
  """Predicts the seconds of each exchange and returns the fastest.

  Args:
    params: a tree; leaves may be abstract.
    density: of the stage.
    workers: that exchange with each other.
    speeds: measured.
    **arguments: of `sparse_all_reduce` that bytes depend on: `values`, `scope`,
      `dense_rules`, `forward`.

  >>> import jax
  >>> slow = Line(1e-3, 1e-7)  # 10 MB/s
  >>> speeds = Speeds(slow, slow, Line(0, 1e-9), Line(0, 5e-9))
  >>> params = [jax.ShapeDtypeStruct((1_000_000,), 'float32')]
  >>> choose_exchange(params, density=1e-3, workers=4, speeds=speeds).exchange
  'all_gather'
  """
  elements = tree.size(params)
  candidates = CANDIDATES if density < 1 else ('dense',)
  seconds = {}
  for name in candidates:
    reducer = sparse_all_reduce(
      None, density=density, exchange=name, workers=workers, **arguments
    )
    sent = wire_bytes_of(reducer, params, workers)
    if name == 'dense':
      seconds[name] = speeds.all_reduce(sent) + speeds.update(elements)
    else:
      # Two messages, one after the other, wait twice.
      waits = speeds.message.start * (name == 'owner_sharded')
      seconds[name] = speeds.message(sent) + waits + speeds.compress(elements)
  return Choice(min(seconds, key=seconds.__getitem__), seconds)
