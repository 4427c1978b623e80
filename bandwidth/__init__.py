"""Deep learning that needs less bandwidth.

`bandwidth.pruning`, `bandwidth.quantization` and `bandwidth.coding` make models
small, down to the file, and `bandwidth.inference` runs them from there;
`bandwidth.rate_allocation` gives a file so many bits a weight,
`bandwidth.distillation` trains the values of shared weights, and
`bandwidth.search` chooses how small each layer is; `bandwidth.collectives`
averages gradients over workers; `bandwidth.tree` names parameters;
`bandwidth.report` says what was measured. They, and the functions that are used
most, are attributes of the package, imported when they are first asked for.

>>> import bandwidth
>>> import numpy as np
>>> params = {'kernel': np.array([[0.0, 0.9, 1.0, 1.1]], np.float32)}
>>> shared = bandwidth.share_params(params, [('.*', 1)])  # 1 bit a weight
>>> shared.params['kernel'].tolist()
[[0.0, 1.0, 1.0, 1.0]]
"""

import importlib
from typing import TYPE_CHECKING, Any

from bandwidth.version import __version__

if TYPE_CHECKING:
  from bandwidth import (
    coding,
    collectives,
    distillation,
    inference,
    pruning,
    quantization,
    rate_allocation,
    report,
    search,
    tree,
  )
  from bandwidth.coding import open_file, write
  from bandwidth.collectives import deep_gradient_compression
  from bandwidth.inference import load_compressed, matmul, plan_inference
  from bandwidth.pruning import prune
  from bandwidth.quantization import share_params
  from bandwidth.rate_allocation import compress_to_rate

__all__ = [
  '__version__',
  'coding',
  'collectives',
  'compress_to_rate',
  'deep_gradient_compression',
  'distillation',
  'inference',
  'load_compressed',
  'matmul',
  'open_file',
  'plan_inference',
  'prune',
  'pruning',
  'quantization',
  'rate_allocation',
  'report',
  'search',
  'share_params',
  'tree',
  'write',
]

_HOMES = {
  'compress_to_rate': 'rate_allocation',
  'deep_gradient_compression': 'collectives',
  'load_compressed': 'inference',
  'matmul': 'inference',
  'open_file': 'coding',
  'plan_inference': 'inference',
  'prune': 'pruning',
  'share_params': 'quantization',
  'write': 'coding',
}


def __getattr__(name: str) -> Any:
  """Imports a sub-package, or a function from its own, by name."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  if name in _HOMES:
    return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
  return importlib.import_module(f'{__name__}.{name}')


def __dir__() -> list[str]:
  """Lists what `__getattr__` finds, without importing it."""
  return sorted({*globals(), *__all__})
