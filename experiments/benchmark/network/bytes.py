"""Bytes of gradients a step, at the real shapes of published networks.

    python -m experiments.benchmark bytes [--output F.json]

Everything is counted: indices, values, scales, biases and norms. `upload` is
the message of one worker, as papers count it; `sent` is what a worker sends in
a step with so many workers, in closed form. The ratio of a run counts the
warm-up of four epochs, `WARM_UP_DENSITIES`, among 90. Second table: bytes as
the number of workers grows, with what the program of as many CPU devices sends.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from bandwidth import tree
from bandwidth.base import GradientReducer
from bandwidth.collectives import WARM_UP_DENSITIES, deep_gradient_compression
from bandwidth.collectives.sparsity.exchange import gather_message
from bandwidth.collectives.sparsity.units import plan_units
from bandwidth.collectives.traffic import accounting
from experiments.benchmark.measuring.shapes import NETWORKS
from experiments.runtime import table

NAME = 'bytes'
_EPOCHS = 90
_VALUES = ('float32', 'float16', 'float8', 'sign')
_PUBLISHED = {'alexnet': 597.0, 'resnet50': 277.0, 'ptb_lstm': 462.0}


def abstract(network: str) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the parameters of a network as shapes."""
  return {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in NETWORKS[network]().items()
  }


def upload(params: Any, density: float, values: str) -> int:
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
      f'Elias-Fano, {values}': functools.partial(upload, params, values=values)
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


def compiled_bytes(reducer: GradientReducer, params: Any, workers: int) -> int:
  """Returns what the program of so many devices sends, a device and a step."""
  state = jax.eval_shape(reducer.init, params)
  mesh = jax.make_mesh((workers,), ('data',), axis_types=(AxisType.Auto,))
  spec = PartitionSpec('data')

  def one(grads: Any, state: Any) -> Any:
    local = jax.tree.map(lambda leaf: leaf[0], (grads, state))
    out = reducer.reduce(*local)
    return jax.tree.map(lambda leaf: leaf[None], out)

  mapped = jax.shard_map(
    one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
  )
  stacked = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((workers, *leaf.shape), leaf.dtype),
    (params, state),
  )
  compiled = jax.jit(mapped).lower(*stacked).compile()
  return accounting.wire_bytes(compiled)


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
        compiled = compiled_bytes(reducer, params, workers)
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


def main(argv: Sequence[str]) -> int:
  """Counts; returns the exit status."""
  parser = argparse.ArgumentParser(prog='benchmark bytes')
  parser.add_argument('--density', type=float, default=1e-3)
  parser.add_argument('--workers', type=int, nargs='+', default=[4, 8, 32, 128])
  parser.add_argument(
    '--network', nargs='+', choices=sorted(NETWORKS),
    default=['alexnet', 'resnet50', 'ptb_lstm'],
  )  # fmt: skip
  parser.add_argument(
    '--growth_of', nargs='+', choices=sorted(NETWORKS),
    default=['vector', 'resnet50'],
  )  # fmt: skip
  parser.add_argument(
    '--compiled', nargs='*', choices=sorted(NETWORKS), default=['vector']
  )
  parser.add_argument('--output', help='JSON file')
  arguments = parser.parse_args(argv)
  if not 0 < arguments.density <= 1:
    parser.error(f'argument --density: {arguments.density} is not in (0, 1]')
  if min(arguments.workers) < 1:
    parser.error(f'argument --workers: {arguments.workers} are not positive')
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', max(arguments.workers))
  steady = [
    row
    for network in arguments.network
    for row in _steady_rows(network, arguments.density)
  ]
  table.show(steady)
  growth = []
  for network in arguments.growth_of:
    limit = max(arguments.workers) if network in arguments.compiled else 0
    growth += _growth_rows(network, arguments.density, arguments.workers, limit)
  print()
  table.show(growth)
  if arguments.output:
    try:
      table.write(arguments.output, NAME, [*steady, *growth])
    except ValueError as error:
      print(f'benchmark {NAME}: error: {error}', file=sys.stderr)
      return 2
  return 0
