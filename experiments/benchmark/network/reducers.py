"""Reducers that benchmarks of the network compare, as configs name them."""

from typing import Any

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
