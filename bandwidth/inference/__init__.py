"""Run from the compressed form: products that never decode the weights.

`load_compressed` opens a file into matrices: packed codes with a codebook,
8-bit integers, or the weights that are not zero; `codebook_matrix` and its
kin pack arrays. `matmul` multiplies activations by one, exactly or in the
rounding of a mode, under `jit`, `vmap` and `grad`; `plan_inference` times the
forms here and keeps each matrix in the fastest. `CompressedNetwork` runs
networks of Flax, and `plan_layers` keeps each of their layers in the fastest
form; they alone import it.

>>> import jax.numpy as jnp
>>> import numpy as np
>>> from bandwidth import inference
>>> codes = np.arange(128 * 256).reshape(128, 256) % 16  # 128 outputs of 256
>>> matrix = inference.codebook_matrix(codes, np.linspace(-1, 1, 16))
>>> matrix.bits, inference.nbytes(matrix)  # 131,072 bytes in float32
(4, 16448)
>>> y = inference.matmul(jnp.ones((1, 256)), matrix, backend='xla')
>>> bool(jnp.allclose(y[0], inference.decode(matrix).sum(0), atol=1e-4))
True
"""

import importlib
from typing import TYPE_CHECKING, Any

from bandwidth.inference.backends import BACKENDS
from bandwidth.inference.loading import load_compressed
from bandwidth.inference.matrices import (
  CodebookMatrix,
  Matrix,
  SparseMatrix,
  UniformMatrix,
  codebook_matrix,
  decode,
  is_matrix,
  nbytes,
  rows_of,
  sparse_matrix,
  ternary_matrix,
  uniform_matrix,
)
from bandwidth.inference.planning import (
  Choice,
  Plan,
  Timing,
  measure_forms,
  measure_matrices,
  plan_inference,
)
from bandwidth.inference.products import matmul
from bandwidth.inference.rounding import MODES

if TYPE_CHECKING:
  from bandwidth.inference.networks.layer_plan import (
    LayerCall as LayerCall,
  )
  from bandwidth.inference.networks.layer_plan import (
    flax_forms as flax_forms,
  )
  from bandwidth.inference.networks.layer_plan import (
    layer_calls as layer_calls,
  )
  from bandwidth.inference.networks.layer_plan import (
    measure_layer as measure_layer,
  )
  from bandwidth.inference.networks.layer_plan import (
    plan_cache_path as plan_cache_path,
  )
  from bandwidth.inference.networks.layer_plan import (
    plan_layers as plan_layers,
  )
  from bandwidth.inference.networks.linen import (
    CompressedNetwork as CompressedNetwork,
  )

__all__ = [
  'BACKENDS',
  'MODES',
  'Choice',
  'CodebookMatrix',
  'Matrix',
  'Plan',
  'SparseMatrix',
  'Timing',
  'UniformMatrix',
  'codebook_matrix',
  'decode',
  'is_matrix',
  'load_compressed',
  'matmul',
  'measure_forms',
  'measure_matrices',
  'nbytes',
  'plan_inference',
  'rows_of',
  'sparse_matrix',
  'ternary_matrix',
  'uniform_matrix',
]

_OF_FLAX = {
  'CompressedNetwork': 'linen',
  'LayerCall': 'layer_plan',
  'flax_forms': 'layer_plan',
  'layer_calls': 'layer_plan',
  'measure_layer': 'layer_plan',
  'plan_cache_path': 'layer_plan',
  'plan_layers': 'layer_plan',
}


def __getattr__(name: str) -> Any:
  """Imports what runs networks of Flax, which is not needed for the rest."""
  if name not in _OF_FLAX:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  try:
    home = importlib.import_module(f'{__name__}.networks.{_OF_FLAX[name]}')
  except ModuleNotFoundError as error:
    if not error.name or error.name.split('.')[0] != 'flax':
      raise
    raise ImportError(
      f'{__name__}.{name} is of networks of Flax: pip install flax'
    ) from error
  return getattr(home, name)
