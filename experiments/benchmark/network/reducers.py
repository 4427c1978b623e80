"""Reducers that benchmarks of the network compare, as configs name them."""

from typing import Any

import jax

from bandwidth.base import GradientReducer
from experiments.training.workers import PER_WORKER, REPLICATED, Workers

_DGC = {'name': 'deep_gradient_compression', 'density': 1e-3}
REDUCERS: dict[str, dict[str, Any]] = {
  'dense': {'name': 'dense_all_reduce', 'dtype': 'float32'},
  'dense bfloat16': {'name': 'dense_all_reduce', 'dtype': 'bfloat16'},
  'dgc all_gather': {**_DGC, 'exchange': 'all_gather'},
  'dgc owner_sharded': {**_DGC, 'exchange': 'owner_sharded'},
  'dgc dense': {**_DGC, 'exchange': 'dense'},
  'dgc auto': {**_DGC, 'exchange': 'auto'},
  'shared_mask': {'name': 'shared_mask', 'density': 1e-3},
  'random_k': {'name': 'random_k', 'density': 1e-3},
  'sign': {'name': 'sign_error_feedback'},
  'int8': {'name': 'two_phase_quantized', 'format': 'int8'},
  'power_sgd': {'name': 'power_sgd', 'rank': 2},
}
"""Configs of the reducers, by name."""


def compile_reducer(
  reducer: GradientReducer, workers: Workers, grads: Any, state: Any
) -> Any:
  """Compiles `(grads, state) -> (mean, state)` of all workers.

  Args:
    reducer: of one of them.
    workers: and their devices, which need not exist.
    grads: of each worker: arrays, or shapes and where they lie.
    state: likewise.
  """
  return workers.compile(
    lambda grads, state: reducer.reduce(grads, state),
    (grads, state),
    kinds=(PER_WORKER, PER_WORKER),
    out_kinds=(REPLICATED, PER_WORKER),
  )


def abstract_state(tree: Any, workers: Workers, kind: str) -> Any:
  """Returns shapes of arrays of a kind, of all workers and where they lie."""
  axis = () if kind == REPLICATED else (workers.count,)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      axis + leaf.shape, leaf.dtype, sharding=workers.sharding(kind)
    ),
    tree,
  )


def compile_abstract(
  reducer: GradientReducer, workers: Workers, params: Any
) -> Any:
  """Compiles as `compile_reducer`, of arrays that need not exist either."""
  state = jax.eval_shape(reducer.init, params)
  grads, state = (
    abstract_state(tree, workers, PER_WORKER) for tree in (params, state)
  )
  return compile_reducer(reducer, workers, grads, state)
