"""What the TPU compiler makes of each reducer on a pod, without a TPU.

The reducer alone, at the shapes of a network, compiled for one slice and for
several: collectives, bytes of a chip and a step to its slice (ICI) and to other
slices (DCN), beside those of the dense all-reduce on the same chips. A reducer
whose collectives the compiler widens shows more ICI bytes than its closed form.
"""

import time
from collections.abc import Collection
from typing import Any

from experiments.benchmark.network.pods import Pod, columns_of, sent_by
from experiments.benchmark.network.reducers import REDUCERS, compile_abstract
from experiments.models.shapes import abstract
from experiments.runtime import table
from experiments.training.reducers import make_reducer

EXCHANGES = {
  name: REDUCERS[name]
  for name in (
    *('dense', 'dense bfloat16', 'dgc all_gather', 'dgc owner_sharded'),
    *('shared_mask', 'random_k', 'sign', 'power_sgd'),
  )
}
"""Configs of the reducers that are compiled, by name."""

ON_SLICES = ('dense', 'dgc all_gather', 'dgc owner_sharded')
"""Those that are compiled for several slices: what is sparse is so between."""


def names_on(pod: Pod, wanted: Collection[str]) -> list[str]:
  """Returns which reducers to compile for a pod; none wanted are all."""
  names = ON_SLICES if pod.slices > 1 else EXCHANGES
  return [name for name in names if not wanted or name in wanted]


def measure_exchange(name: str, network: str, pod: Pod) -> table.Row:
  """Compiles one reducer for a pod.

  Args:
    name: in `EXCHANGES`.
    network: of `experiments.models.shapes`.
    pod: chips.
  """
  workers = pod.workers
  sizes = tuple(workers.axes.values())
  reducer = make_reducer(
    EXCHANGES[name], axis_name=workers.axis_name, workers=sizes
  )
  params = abstract(network)
  start = time.monotonic()
  compiled = compile_abstract(reducer, workers, params)
  sent = sent_by(compiled, workers.mesh)
  total, closed = columns_of(sent), reducer.wire_bytes
  return {
    'network': network,
    'pod': f'{pod.slices} x {pod.topology}',
    'reducer': name,
    'collectives': total.pop('collectives'),
    'kinds': ' '.join(sorted({row['kind'] for row in sent})),
    **total,
    'closed_form': closed(params, workers=sizes) if closed else None,
    'compile_seconds': round(time.monotonic() - start, 1),
    'sent': sent,
  }


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Adds, for each link, the bytes of the dense reducer by those of the row."""
  dense = {
    (row['network'], row['pod']): row
    for row in rows
    if row['reducer'] == 'dense'
  }
  for row in rows:
    base = dense.get((row['network'], row['pod']))
    if base is None:
      continue
    for link in ('ici', 'dcn'):
      field = f'{link}_bytes'
      if row[field]:
        row[f'{link}_ratio'] = round(base[field] / row[field], 1)
  return rows
