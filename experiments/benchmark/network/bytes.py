"""Bytes of gradients a step, at the real shapes of published networks.

    python -m experiments.benchmark bytes [--output F.json]

Everything is counted: indices, values, scales, biases and norms. `upload` is
the message of one worker, as papers count it; `sent` is what a worker sends in
a step with so many workers, in closed form. The ratio of a run counts the
warm-up of four epochs, `WARM_UP_DENSITIES`, among 90. Second table: bytes as
the number of workers grows, with what the program of as many CPU devices sends.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from bandwidth import tree
from bandwidth.base import GradientReducer
from bandwidth.collectives import WARM_UP_DENSITIES, deep_gradient_compression
from bandwidth.collectives.sparsity.exchange import gather_message
from bandwidth.collectives.sparsity.units import plan_units
from bandwidth.collectives.traffic import accounting
from experiments.benchmark.harness import Benchmark
from experiments.benchmark.network.reducers import compile_abstract
from experiments.models.shapes import NETWORKS, abstract
from experiments.runtime import options, table
from experiments.training.workers import make_workers

_EPOCHS = 90
_VALUES = ('float32', 'float16', 'float8', 'sign')
_PUBLISHED = {'alexnet': 597.0, 'resnet50': 277.0, 'ptb_lstm': 462.0}


def _upload(params: Any, density: float, values: str) -> int:
  """Returns the bytes of a worker's message."""
  return gather_message(plan_units(params), density, values).nbytes


def format_of_the_paper(params: Any, density: float) -> int:
  """Returns the bytes that reproduce the ratios of DGC's tables.

  Six bytes for a selected weight (float32 and a run of zeros in 16 bits), and
  four for each element of arrays with one axis.
  """
  matrices = [leaf for leaf in params.values() if len(leaf.shape) > 1]
  dense = tree.size(params) - tree.size(matrices)
  return round(6 * density * tree.size(matrices)) + 4 * dense


def _steady_rows(network: str, density: float) -> list[dict[str, Any]]:
  params = abstract(network)
  dense = 4 * tree.size(params)
  forms = {
    'as published': functools.partial(format_of_the_paper, params),
    **{
      f'Elias-Fano, {values}': functools.partial(_upload, params, values=values)
      for values in _VALUES
    },
  }
  rows = []
  for name, form in forms.items():
    steady = form(density)
    warm = sum(form(d) for d in WARM_UP_DENSITIES)
    run = warm + (_EPOCHS - len(WARM_UP_DENSITIES)) * steady
    rows.append(
      {
        'network': network,
        'format': name,
        'density': density,
        'dense_bytes': dense,
        'upload_bytes': steady,
        'ratio_steady': round(dense / steady, 1),
        'ratio_run': round(_EPOCHS * dense / run, 1),
        'published': _PUBLISHED.get(network) if 'pub' in name else None,
      }
    )
  return rows


def _compiled_bytes(reducer: GradientReducer, params: Any, count: int) -> int:
  """Returns what the program of so many devices sends, a device and a step."""
  workers = make_workers('shard_map', {'data': count})
  return accounting.wire_bytes(compile_abstract(reducer, workers, params))


def _growth_rows(
  network: str, density: float, counts: Sequence[int], compile_up_to: int
) -> list[dict[str, Any]]:
  params = abstract(network)
  rows = []
  for workers in counts:
    dense = accounting.dense_wire_bytes(params, workers=workers)
    for exchange in ('all_gather', 'owner_sharded'):
      reducer = deep_gradient_compression(
        'data', density=density, exchange=exchange, workers=workers
      )
      sent = reducer.wire_bytes(params, workers)
      compiled = None
      if workers <= compile_up_to:
        compiled = _compiled_bytes(reducer, params, workers)
      rows.append(
        {
          'network': network,
          'workers': workers,
          'exchange': exchange,
          'sent_bytes': sent,
          'compiled_bytes': compiled,
          'dense_sent_bytes': dense,
          'ratio': round(dense / sent, 1),
        }
      )
  return rows


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', max(given.workers))
  for network in given.network:
    yield _steady_rows(network, given.density)
  for network in given.growth_of:
    limit = max(given.workers) if network in given.compiled else 0
    yield _growth_rows(network, given.density, given.workers, limit)


def _show(rows: list[dict[str, Any]], given: Any) -> None:
  del given
  table.show([row for row in rows if 'format' in row])
  print()
  table.show([row for row in rows if 'exchange' in row])


main = Benchmark(
  name='bytes',
  about=__doc__,
  options={
    'density': options.fraction(1e-3),
    'workers': options.integer([4, 8, 32, 128]),
    'network': options.choice(NETWORKS, ['alexnet', 'resnet50', 'ptb_lstm']),
    'growth_of': options.choice(NETWORKS, ['vector', 'resnet50']),
    'compiled': options.choice(NETWORKS, ['vector'], fewest=0),
  },
  measure=_rows,
  parts=lambda given: len(given.network) + len(given.growth_of),
  show=_show,
).main
