"""One process of the benchmark `wire`: reduces gradients over a real link.

Started by `wire`, beside it, in a network namespace of its own. The
reducers take turns, all processes beginning each step together, which takes as
long as the slowest of them; process 0 prints a line of JSON for each.
"""

import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bandwidth.collectives.traffic import accounting
from experiments.benchmark.network.reducers import compile_reducer
from experiments.measuring.turns import in_place, take_turns
from experiments.models.shapes import NETWORKS, abstract
from experiments.runtime import options, startup
from experiments.training.exchange_choice import AUTO, choose
from experiments.training.reducers import make_reducer
from experiments.training.workers import (
  PER_WORKER,
  REPLICATED,
  Workers,
  make_workers,
)

_COUNTED_STEPS = 3


def _bytes_sent() -> int:
  """What the interfaces of this namespace have sent, loopback aside."""
  lines = pathlib.Path('/proc/self/net/dev').read_text('ascii').splitlines()
  total = 0
  for line in lines[2:]:
    name, counters = line.split(':')
    if name.strip() != 'lo':
      total += int(counters.split()[8])
  return total


class _Run:
  """A reducer, compiled; `step` reduces once and returns the seconds."""

  def __init__(self, config: Mapping[str, Any], workers: Workers, params: Any):
    reducer = make_reducer(config, axis_name='data', workers=(workers.count,))
    zeros = jax.jit(reducer.init)(params)
    local = jax.tree.map(lambda leaf: np.asarray(leaf)[None], zeros)
    state = workers.place_local(local)
    grads = workers.place_local(_gradients(params))
    call = compile_reducer(reducer, workers, grads, state)
    self.step = in_place(
      lambda state: call(grads, state), state, lambda out: out[1]
    )
    self.closed_form = 0
    if reducer.wire_bytes is not None:
      self.closed_form = reducer.wire_bytes(params, workers=workers.count)
    self.compiled = accounting.wire_bytes(call)


def _gradients(params: Any) -> Any:
  rng = np.random.default_rng(jax.process_index())
  return {
    name: rng.standard_normal((1, *leaf.shape), np.float32)
    for name, leaf in params.items()
  }


def _barrier(workers: Workers) -> Callable[[], None]:
  one = workers.place_local(np.ones((1, 1), np.float32))
  call = workers.compile(
    lambda x: jax.lax.psum(x, 'data'),
    (one,),
    kinds=(PER_WORKER,),
    out_kinds=REPLICATED,
  )
  return lambda: jax.block_until_ready(call(one)) and None


def _count(run: _Run, barrier: Callable[[], None]) -> float:
  """Bytes that the interface sends in a step."""
  barrier()
  before = _bytes_sent()
  for _ in range(_COUNTED_STEPS):
    run.step()
  barrier()
  return (_bytes_sent() - before) / _COUNTED_STEPS


def _measure(
  configs: Mapping[str, Mapping[str, Any]],
  workers: Workers,
  network: str,
  repeats: int,
) -> list[dict[str, Any]]:
  """Measures reducers on the link that these workers have."""
  params = jax.tree.map(jnp.zeros_like, abstract(network))
  barrier = _barrier(workers)
  settled, choices = {}, {}
  for name, config in configs.items():
    settled[name] = dict(config)
    if config.get('exchange') == AUTO:
      choices[name] = choose(config, workers, params)
      settled[name]['exchange'] = choices[name].exchange
  # Those that are the same program are measured once.
  runs = {
    key: _Run(json.loads(key), workers, params)
    for key in dict.fromkeys(map(_key, settled.values()))
  }
  turns = take_turns(
    {key: _together(run, barrier) for key, run in runs.items()}, repeats
  )
  counted = {key: _count(run, barrier) for key, run in runs.items()}
  seconds = {key: _of_the_slowest(own) for key, own in turns.seconds.items()}
  rows = []
  for name, key in ((name, _key(c)) for name, c in settled.items()):
    row = {
      'reducer': name,
      'seconds': float(np.median(seconds[key])),
      'fastest': float(min(seconds[key])),
      'slowest': float(max(seconds[key])),
      'closed_form': runs[key].closed_form,
      'compiled_bytes': runs[key].compiled,
      'interface_bytes': round(counted[key]),
    }
    if name in choices:
      row['choice'] = choices[name].exchange
      row['predicted'] = dict(choices[name].seconds)
    rows.append(row)
  return rows


def _together(run: _Run, barrier: Callable[[], None]) -> Callable[[], float]:
  """Times steps that all processes begin at once."""

  def once() -> float:
    barrier()
    return run.step()

  return once


def _of_the_slowest(seconds: np.ndarray) -> np.ndarray:
  """A step takes as long as it takes the last process."""
  everywhere = multihost_utils.process_allgather(seconds.astype(np.float32))
  return np.max(everywhere, axis=0)


def _key(config: Mapping[str, Any]) -> str:
  # Both are a dense all-reduce with momentum, whatever the density.
  dense = config.get('exchange') == 'dense'
  return json.dumps(
    {k: v for k, v in config.items() if not (dense and k == 'density')},
    sort_keys=True,
  )


def main(argv: Sequence[str]) -> int:
  """Joins the other processes and measures."""
  given = options.parse(
    'wire_worker',
    __doc__,
    {
      'coordinator': options.text(options.REQUIRED),
      'num_processes': options.integer(options.REQUIRED),
      'process_id': options.integer(options.REQUIRED, least=0),
      'reducers': options.text(options.REQUIRED, 'JSON, configs by name'),
      'network': options.choice(NETWORKS, options.REQUIRED),
      'repeats': options.integer(options.REQUIRED),
    },
    argv,
  )
  processes = startup.Processes(
    True, given.coordinator, given.num_processes, given.process_id
  )
  startup.prepare_devices({'cpu_devices': given.num_processes}, processes)
  workers = make_workers('shard_map', {'data': given.num_processes})
  rows = _measure(
    json.loads(given.reducers), workers, given.network, given.repeats
  )
  if given.process_id == 0:
    for row in rows:
      print(json.dumps(row), flush=True)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
