"""`exchange: auto`: what is fastest on these workers, by measurement."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth import tree
from bandwidth.base import Params
from bandwidth.collectives import sparse_all_reduce
from bandwidth.collectives.traffic.choice import (
  CANDIDATES,
  Choice,
  Curve,
  Line,
  Speeds,
  choose_exchange,
)
from bandwidth.collectives.traffic.closed_forms import (
  all_gather_bytes,
  all_reduce_bytes,
)
from bandwidth.files import replace_text
from experiments.measuring.turns import take_turns, timed
from experiments.training.workers import PER_WORKER, Workers

AUTO = 'auto'
_FILE = 'exchanges.json'
_ROUNDS, _CALLS = 3, 4
# Bytes of a message, elements of a gradient: as many as take this long.
_SMALLEST, _FACTOR, _ENOUGH = 2**10, 16, 0.2
_FIRST = 2**20
_ARGUMENTS = ('values', 'scope', 'dense_rules', 'forward')


class ExchangeChoices(NamedTuple):
  """A config whose exchanges are chosen."""

  config: dict[str, Any]  # that of the run, without `exchange: auto`
  # The exchange of each reducer that had it, by stage; 'run': of the reducer
  # that all other stages share.
  chosen: dict[str, str]
  lines: list[str]  # what was predicted, for people


def settle_exchanges(
  config: Mapping[str, Any],
  workers: Workers,
  params: Params,
  *,
  directory: pathlib.Path | None = None,
) -> ExchangeChoices:
  """Replaces `exchange: auto` of all reducers of a config.

  Args:
    config: of a run, resolved.
    workers: those that will exchange gradients.
    params: of the network, arrays or abstract shapes.
    directory: where `keep_exchanges` may have kept earlier choices: a run that
      is resumed by as many workers goes on with the exchange that it began
      with.

  Raises:
    ValueError: an argument of a reducer is out of range.
  """
  settled = {**config, 'stages': dict(config['stages'])}
  known = saved_exchanges(directory, workers.count)
  lines: list[str] = []

  def settle(name: str, reducer: Mapping[str, Any]) -> Mapping[str, Any]:
    if reducer.get('exchange') != AUTO:
      return reducer
    if name not in known:
      choice = choose(reducer, workers, params)
      known[name] = choice.exchange
      predicted = ', '.join(f'{k} {v:.3g} s' for k, v in choice.seconds.items())
      lines.append(f'exchange of {name}: {choice.exchange} ({predicted})')
    return {**reducer, 'exchange': known[name]}

  settled['reducer'] = settle('run', config['reducer'])
  for name, stage in config['stages'].items():
    if 'reducer' in stage:
      reducer = settle(name, stage['reducer'])
      settled['stages'][name] = {**stage, 'reducer': reducer}
  return ExchangeChoices(settled, known, lines)


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
    wire = Line(0.0, 1.0)
    speeds = Speeds(wire, wire, dict.fromkeys(CANDIDATES, Line(0.0, 0.0)))
  else:
    speeds = measure_speeds(workers, density, arguments, tree.size(params))
  return choose_exchange(
    params, density=density, workers=count, speeds=speeds, **arguments
  )


def measure_speeds(
  workers: Workers, density: float, arguments: Mapping[str, Any], elements: int
) -> Speeds:
  """Measures link, selection and update; all processes get the same numbers.

  Messages and gradients grow until they are those of the run, or take a fifth
  of a second.

  Args:
    workers: on devices of their own.
    density: fraction of elements that are sent.
    arguments: other ones of `sparse_all_reduce`.
    elements: number of elements of the gradient.
  """
  axis = next(iter(workers.axes))
  count = workers.axes[axis]
  arguments = {k: v for k, v in arguments.items() if k != 'dense_rules'}
  made = {
    name: sparse_all_reduce(
      None if name == 'dense' else axis,
      density=density,
      exchange=name,
      workers=1 if name == 'dense' else count,
      **arguments,
    )
    for name in (CANDIDATES if density < 1 else ('dense',))
  }

  def sent(name: str, size: int) -> int:
    vector = jax.ShapeDtypeStruct((size,), jnp.float32)
    return made[name].wire_bytes(vector, count)

  all_reduce = _link(
    workers,
    lambda x: lax.psum(x, axis),
    jnp.float32,
    lambda n: all_reduce_bytes(n, count),
    4 * elements,
  )
  message = _link(
    workers,
    lambda x: lax.all_gather(x, axis),
    jnp.uint8,
    lambda n: all_gather_bytes(n, count),
    max((sent(name, elements) for name in made if name != 'dense'), default=0)
    // max(count - 1, 1),
  )

  def work(name: str) -> Line:
    def reduce(vector: jax.Array) -> Any:
      return made[name].reduce(vector, made[name].init(vector))

    size, seconds = _timed(workers, reduce, jnp.float32, _FIRST, elements)[-1]
    link = 0.0 if name == 'dense' else message(sent(name, size))
    return Line(0.0, max(seconds - link, 0.0) / size)

  return Speeds(all_reduce, message, {name: work(name) for name in made})


def _link(
  workers: Workers,
  collective: Callable[..., Any],
  dtype: Any,
  sent: Callable[[int], int],
  largest: int,
) -> Curve:
  """Seconds of a collective by the bytes that a worker sends in it."""
  width = jnp.dtype(dtype).itemsize
  timed = _timed(
    workers, collective, dtype, _SMALLEST // width, largest // width
  )
  return Curve(
    (0.0, *(float(sent(size * width)) for size, _ in timed)),
    (timed[0][1], *(seconds for _, seconds in timed)),
  )


def _timed(
  workers: Workers, fn: Callable[..., Any], dtype: Any, first: int, last: int
) -> list[tuple[int, float]]:
  """Sizes of a vector from `first` to `last`, if that is more; and seconds."""
  size = first = max(min(first, last), 1)
  timed = []
  while True:
    shape = jax.ShapeDtypeStruct((size,), dtype)
    timed.append((size, _seconds(workers, fn, shape)))
    if size >= last or timed[-1][1] > _ENOUGH:
      return timed
    size = min(size * _FACTOR, last)


def _seconds(
  workers: Workers, fn: Callable[..., Any], shape: jax.ShapeDtypeStruct
) -> float:
  """Seconds of a function of one array of a worker, called again and again.

  A single call of a collective is short where the others have come before. What
  else a machine does makes a round slower, never faster.
  """
  rng = np.random.default_rng(0)
  data = rng.integers(0, 100, (workers.count, *shape.shape)).astype(shape.dtype)
  argument = workers.place(data, PER_WORKER)
  call = workers.compile(
    fn, (argument,), kinds=(PER_WORKER,), out_kinds=PER_WORKER
  )

  def several() -> None:
    for _ in range(_CALLS):
      jax.block_until_ready(call(argument))

  turns = take_turns({'calls': timed(several)}, _ROUNDS)
  return _slowest(turns.fastest('calls') / _CALLS)


def _slowest(value: float) -> float:
  """The largest value of all processes, in all: their programs must be one."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return float(multihost_utils.process_allgather(np.float32(value)).max())


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
