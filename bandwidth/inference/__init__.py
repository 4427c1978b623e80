"""Run from the compressed form: products that never decode the weights.

`matmul` is the interface; `matrices` has the forms and what packs them.
`CompressedNetwork`, of `linen`, runs networks of Flax and alone imports it.
"""

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


def __getattr__(name: str) -> Any:
  if name == 'CompressedNetwork':
    from bandwidth.inference.networks.linen import CompressedNetwork

    return CompressedNetwork
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
