"""Gradient reducers, and the bytes that they send."""

from bandwidth.collectives.aligned import random_k, shared_mask
from bandwidth.collectives.deep_gradient_compression import (
  WARM_UP_DENSITIES,
  clip_local,
  deep_gradient_compression,
)
from bandwidth.collectives.dense import dense_all_reduce
from bandwidth.collectives.hierarchical import hierarchical
from bandwidth.collectives.power_sgd import power_sgd
from bandwidth.collectives.quantized import qsgd, terngrad
from bandwidth.collectives.sparse import sparse_all_reduce
from bandwidth.collectives.sparsity.memory import (
  Memory,
  error_feedback,
  momentum_correction,
  no_memory,
)
from bandwidth.collectives.sparsity.selection import top_k_indices
from bandwidth.collectives.two_phase import (
  sign_error_feedback,
  two_phase_quantized,
)
from bandwidth.collectives.wire.elias_fano import EliasFano
from bandwidth.collectives.wire.message import Packed, pack
from bandwidth.collectives.wire.sparse_message import Entries, SparseMessage
from bandwidth.collectives.wire.value_formats import ValueFormat, value_format
from bandwidth.collectives.workers.ordered import ordered_psum, pairwise_sum
from bandwidth.collectives.workers.resplit import resplit_workers

__all__ = [
  'WARM_UP_DENSITIES',
  'EliasFano',
  'Entries',
  'Memory',
  'Packed',
  'SparseMessage',
  'ValueFormat',
  'clip_local',
  'deep_gradient_compression',
  'dense_all_reduce',
  'error_feedback',
  'hierarchical',
  'momentum_correction',
  'no_memory',
  'ordered_psum',
  'pack',
  'pairwise_sum',
  'power_sgd',
  'qsgd',
  'random_k',
  'resplit_workers',
  'shared_mask',
  'sign_error_feedback',
  'sparse_all_reduce',
  'terngrad',
  'top_k_indices',
  'two_phase_quantized',
  'value_format',
]
