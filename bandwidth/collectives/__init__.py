"""Gradient reducers, and the bytes that they send."""

from bandwidth.collectives.dense import dense_all_reduce
from bandwidth.collectives.message import Packed, pack
from bandwidth.collectives.ordered import ordered_psum, pairwise_sum
from bandwidth.collectives.workers import resplit_workers

__all__ = [
  'Packed',
  'dense_all_reduce',
  'ordered_psum',
  'pack',
  'pairwise_sum',
  'resplit_workers',
]
