"""What the TPU compiler makes of each reducer on a pod, without a TPU.

The reducer alone, at the shapes of a network, compiled for one slice and for
several: collectives, bytes of a chip and a step to its slice (ICI) and to other
slices (DCN), beside those of the dense all-reduce on the same chips. A reducer
whose collectives the compiler widens shows more ICI bytes than its closed form.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.measuring.shapes import NETWORKS
from experiments.benchmark.network.tpu import Pod, abstract_state, sent_by
from experiments.runtime import table
from experiments.training.reducers import make_reducer
from experiments.training.workers import PER_WORKER, REPLICATED

_DGC = {'name': 'deep_gradient_compression', 'density': 1e-3}
EXCHANGES: dict[str, Mapping[str, Any]] = {
  'dense': {'name': 'dense_all_reduce', 'dtype': 'float32'},
  'dense bfloat16': {'name': 'dense_all_reduce', 'dtype': 'bfloat16'},
  'dgc all_gather': {**_DGC, 'exchange': 'all_gather'},
  'dgc owner_sharded': {**_DGC, 'exchange': 'owner_sharded'},
  'shared_mask': {'name': 'shared_mask', 'density': 1e-3},
  'random_k': {'name': 'random_k', 'density': 1e-3},
  'sign': {'name': 'sign_error_feedback'},
  'power_sgd': {'name': 'power_sgd', 'rank': 2},
}
"""Configs of the reducers that are compiled, by name."""

ON_SLICES = ('dense', 'dgc all_gather', 'dgc owner_sharded')
"""Those that are compiled for several slices: what is sparse is so between."""


def measure_exchange(name: str, network: str, pod: Pod) -> table.Row:
  """Compiles one reducer for a pod.

  Args:
    name: in `EXCHANGES`.
    network: in `experiments.benchmark.measuring.shapes`.
    pod: chips.
  """
  workers = pod.workers
  sizes = tuple(workers.axes.values())
  reducer = make_reducer(
    EXCHANGES[name], axis_name=workers.axis_name, workers=sizes
  )
  params = {
    key: jax.ShapeDtypeStruct(shape, jnp.float32)
    for key, shape in NETWORKS[network]().items()
  }
  state = jax.eval_shape(reducer.init, params)
  start = time.monotonic()
  compiled = workers.compile(
    lambda grads, state: reducer.reduce(grads, state),
    (
      abstract_state(params, workers, PER_WORKER),
      abstract_state(state, workers, PER_WORKER),
    ),
    kinds=(PER_WORKER, PER_WORKER),
    out_kinds=(REPLICATED, PER_WORKER),
  )
  sent = sent_by(compiled, workers.mesh)
  return {
    'network': network,
    'pod': f'{pod.slices} x {pod.topology}',
    'reducer': name,
    'collectives': sum(row['count'] for row in sent),
    'kinds': ' '.join(sorted({row['kind'] for row in sent})),
    'ici_bytes': math.ceil(sum(row['ici_bytes'] for row in sent)),
    'dcn_bytes': math.ceil(sum(row['dcn_bytes'] for row in sent)),
    'closed_form': reducer.wire_bytes(params, sizes),
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
    base = dense[row['network'], row['pod']]
    for link in ('ici', 'dcn'):
      field = f'{link}_bytes'
      if row[field]:
        row[f'{link}_ratio'] = round(base[field] / row[field], 1)
  return rows
