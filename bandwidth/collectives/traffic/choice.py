"""Which exchange is fastest, from bytes in closed form and measured speeds.

A link that is fast enough needs no compression: selecting takes longer than
sending everything. The choice is made for each density of a run, where its
steps are compiled.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bandwidth import tree
from bandwidth.base import Params
from bandwidth.collectives.sparse import sparse_all_reduce

CANDIDATES = ('dense', 'all_gather', 'owner_sharded')


class Line(NamedTuple):
  """Seconds as a linear function.

  Attributes:
    start: seconds that nothing takes, the value at 0.
    each: seconds for each byte, or each element.
  """

  start: float
  each: float

  def __call__(self, count: float) -> float:
    """Returns the seconds that `count` takes."""
    return self.start + self.each * count


class Curve(NamedTuple):
  """Seconds as measured at some sizes, and on straight lines between them.

  A link is no line: what buffers on the way swallow is fast, and what caches
  hold. Beyond the last size the last slope goes on.

  Attributes:
    sizes: numbers of bytes or elements, ascending, at least two.
    seconds: seconds at each of these sizes.
  """

  sizes: tuple[float, ...]
  seconds: tuple[float, ...]

  def __call__(self, count: float) -> float:
    """Returns the seconds that `count` takes.

    >>> link = Curve((0.0, 10.0, 20.0), (1.0, 2.0, 5.0))
    >>> [link(5), link(30)]
    [1.5, 8.0]
    """
    if count <= self.sizes[-1]:
      return float(np.interp(count, self.sizes, self.seconds))
    size = self.sizes[-1] - self.sizes[-2]
    slope = (self.seconds[-1] - self.seconds[-2]) / size
    return self.seconds[-1] + max(slope, 0.0) * (count - self.sizes[-1])


class Speeds(NamedTuple):
  """What was measured on the workers of a run.

  Attributes:
    all_reduce: `bytes that a worker sends -> seconds` of a dense all-reduce.
    message: the same for an all-gather or an all-to-all.
    work: by candidate, `elements -> seconds` without the link: to accumulate,
      select, encode, decode and combine a gradient.
  """

  all_reduce: Callable[[float], float]
  message: Callable[[float], float]
  work: Mapping[str, Callable[[float], float]]


class Choice(NamedTuple):
  """The fastest exchange.

  Attributes:
    exchange: name of the fastest one, one of `CANDIDATES`.
    seconds: predicted seconds of a step, by candidate.
  """

  exchange: str
  seconds: Mapping[str, float]


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
    params: tree of arrays or abstract shapes.
    density: fraction of the elements that is sent, in (0, 1].
    workers: number of workers that exchange with each other.
    speeds: seconds as measured on these workers.
    **arguments: arguments of `sparse_all_reduce` that bytes depend on:
      `values`, `scope`, `dense_rules`, `forward`.

  >>> import jax
  >>> slow = Line(1e-3, 1e-7)  # 10 MB/s
  >>> work = {'dense': 1e-9, 'all_gather': 5e-9, 'owner_sharded': 7e-9}
  >>> speeds = Speeds(slow, slow, {k: Line(0, v) for k, v in work.items()})
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
    sent = reducer.wire_bytes(params, workers)
    if name == 'dense':
      link = speeds.all_reduce(sent)
    else:
      # Two messages, one after the other, wait twice.
      waits = speeds.message(0) * (name == 'owner_sharded')
      link = speeds.message(sent) + waits
    seconds[name] = link + speeds.work[name](elements)
  return Choice(min(seconds, key=seconds.__getitem__), seconds)
