"""`exchange: auto`: what is fastest on these workers, by measurement."""

import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth import tree
from bandwidth.base import Params
from bandwidth.collectives import sparse_all_reduce
from bandwidth.collectives.choice import (
  Choice,
  Line,
  Speeds,
  choose_exchange,
)
from bandwidth.collectives.closed_forms import (
  all_gather_bytes,
  all_reduce_bytes,
)
from experiments.files import replace_text
from experiments.mapping import PER_WORKER, Workers

AUTO = 'auto'
_FILE = 'exchanges.json'
_REPEATS = 5
_SMALL, _MEDIUM, _LARGE = 2**10, 2**20, 2**22
_ELEMENTS = 2**22
_ARGUMENTS = ('values', 'scope', 'dense_rules', 'forward')


class Settled(NamedTuple):
  """A config whose exchanges are chosen.

  Attributes:
    config: without `exchange: auto`.
    chosen: the exchange of each reducer that had it, by stage; 'run': of the
      reducer that all other stages share.
    lines: what was predicted, for people.
  """

  config: dict[str, Any]
  chosen: dict[str, str]
  lines: list[str]


def settle_exchanges(
  config: Mapping[str, Any],
  workers: Workers,
  params: Params,
  *,
  directory: pathlib.Path | None = None,
) -> Settled:
  """Replaces `exchange: auto` of all reducers of a config.

  Args:
    config: of a run.
    workers: that will exchange.
    params: of the network.
    directory: where `keep_exchanges` may have kept earlier choices: a run that
      is resumed by as many workers goes on with the exchange that it began
      with.

  Raises:
    ValueError: an argument of a reducer is out of range.
  """
  settled = {**config, 'stages': dict(config['stages'])}
  known = saved_exchanges(directory, workers.count)
  lines: list[str] = []
  settle = functools.partial(_settle, workers, params, known, lines)
  settled['reducer'] = settle('run', config['reducer'])
  for name, stage in config['stages'].items():
    if 'reducer' in stage:
      reducer = settle(name, stage['reducer'])
      settled['stages'][name] = {**stage, 'reducer': reducer}
  return Settled(settled, known, lines)


def _settle(
  workers: Workers,
  params: Params,
  known: dict[str, str],
  lines: list[str],
  name: str,
  reducer: Mapping[str, Any],
) -> Mapping[str, Any]:
  if reducer.get('exchange') != AUTO:
    return reducer
  if name not in known:
    choice = choose(reducer, workers, params)
    known[name] = choice.exchange
    predicted = ', '.join(f'{k} {v:.3g} s' for k, v in choice.seconds.items())
    lines.append(f'exchange of {name}: {choice.exchange} ({predicted})')
  return {**reducer, 'exchange': known[name]}


def choose(
  reducer: Mapping[str, Any], workers: Workers, params: Params
) -> Choice:
  """Chooses the exchange of a reducer for workers.

  Where workers are simulated nothing is sent, and the fewest bytes win.
  """
  density = float(reducer.get('density', 1e-3))
  arguments = {k: reducer[k] for k in _ARGUMENTS if k in reducer}
  # Compression is between the groups of the slowest link.
  count = next(iter(workers.axes.values()))
  if workers.simulated:
    free = Line(0.0, 0.0)
    wire = Line(0.0, 1.0)
    speeds = Speeds(wire, wire, free, free)
  else:
    speeds = measure_speeds(workers, density, arguments, tree.size(params))
  return choose_exchange(
    params, density=density, workers=count, speeds=speeds, **arguments
  )


def measure_speeds(
  workers: Workers,
  density: float,
  arguments: Mapping[str, Any],
  elements: int,
) -> Speeds:
  """Measures link, selection and update; all processes get the same numbers.

  Args:
    workers: not simulated.
    density: of the selection.
    arguments: of `sparse_all_reduce`.
    elements: of the gradient. At most four million are tried.
  """
  axis = next(iter(workers.axes))
  count = workers.axes[axis]
  tried = min(elements, _ELEMENTS)

  def line(
    collective: Callable[..., Any], dtype: Any, sent: Callable[[int], int]
  ) -> Line:
    width = jnp.dtype(dtype).itemsize
    seconds, sizes = [], []
    for nbytes in (_SMALL, _MEDIUM, _LARGE):
      shape = jax.ShapeDtypeStruct((nbytes // width,), dtype)
      seconds.append(_seconds(workers, collective, shape))
      sizes.append(sent(nbytes))
    # The slope between sizes that no buffer on the way swallows.
    each = (seconds[2] - seconds[1]) / max(sizes[2] - sizes[1], 1)
    return Line(seconds[0], max(each, 0.0))

  def compute(exchange: str) -> Line:
    made = sparse_all_reduce(
      None, density=density, exchange=exchange, **arguments
    )

    def reduce(vector: jax.Array) -> Any:
      return made.reduce(vector, made.init(vector))

    shape = jax.ShapeDtypeStruct((tried,), jnp.float32)
    seconds = _seconds(workers, reduce, shape)
    return Line(0.0, seconds / max(tried, 1))

  rules = dict(arguments)
  rules.pop('dense_rules', None)
  arguments = rules
  return Speeds(
    all_reduce=line(
      lambda x: lax.psum(x, axis),
      jnp.float32,
      lambda n: all_reduce_bytes(n, count),
    ),
    message=line(
      lambda x: lax.all_gather(x, axis),
      jnp.uint8,
      lambda n: all_gather_bytes(n, count),
    ),
    update=compute('dense'),
    compress=compute('all_gather'),
  )


def _seconds(
  workers: Workers, fn: Callable[..., Any], shape: jax.ShapeDtypeStruct
) -> float:
  """Median seconds of a function of one array of a worker."""
  rng = np.random.default_rng(0)
  data = rng.integers(0, 100, (workers.count, *shape.shape)).astype(shape.dtype)
  argument = workers.place(data, PER_WORKER)
  call = workers.compile(
    fn, (argument,), kinds=(PER_WORKER,), out_kinds=PER_WORKER
  )
  jax.block_until_ready(call(argument))
  seconds = []
  for _ in range(_REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(call(argument))
    seconds.append(time.perf_counter() - start)
  return _agreed(statistics.median(seconds))


def _agreed(value: float) -> float:
  """The value of process 0, in all processes: their programs must be one."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def saved_exchanges(
  directory: pathlib.Path | None, workers: int
) -> dict[str, str]:
  """Returns what `keep_exchanges` kept for so many workers."""
  path = None if directory is None else directory / _FILE
  if path is None or not path.exists():
    return {}
  return dict(json.loads(path.read_text('utf-8')).get(str(workers), {}))


def keep_exchanges(
  directory: pathlib.Path, workers: int, chosen: Mapping[str, str]
) -> None:
  """Writes the choices for so many workers beside those for others."""
  path = directory / _FILE
  if not chosen:
    return
  text = path.read_text('utf-8') if path.exists() else '{}'
  content = {**json.loads(text), str(workers): dict(chosen)}
  replace_text(path, json.dumps(content, indent=2) + '\n')
