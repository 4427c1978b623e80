"""Kernels for NVIDIA GPUs, for few rows of activations.

A product with a vector reads each weight once, so that decoding it has to take
no longer than its bytes. `decoding` says what words mean and how
they are multiplied, `kernel` has the loops, and their innermost steps are in
PTX (`registers`, `ptx`), which Pallas has no words for, and again in JAX
(`portable`), which is what runs in interpret mode.
"""

from bandwidth.inference.gpu.decoding import Decoding
from bandwidth.inference.gpu.kernel import (
  LAUNCHES,
  MOST_ROWS,
  Launch,
  is_known,
  multiply,
)
from bandwidth.inference.gpu.operands import MOST_INPUTS, Operands, operands

__all__ = (
  'LAUNCHES',
  'MOST_INPUTS',
  'MOST_ROWS',
  'Decoding',
  'Launch',
  'Operands',
  'is_known',
  'multiply',
  'operands',
)
