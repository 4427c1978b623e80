"""Products by Pallas kernels, on GPUs (`gpu`) and TPUs (`tpu`)."""

import jax

from bandwidth.inference import gpu, tpu
from bandwidth.inference.matrices import CodebookMatrix, Matrix, SparseMatrix

_DEVICES = ('gpu', 'tpu')


def why_not(matrix: Matrix, device: str | None = None) -> str:
  """Returns why kernels can't run a matrix; empty where they can.

  Args:
    matrix: a compressed matrix of any form.
    device: 'gpu' or 'tpu'; None: the default one.
  """
  device = device or jax.default_backend()
  if device not in _DEVICES:
    return f'its kernels are for GPUs and TPUs, and this is a {device}'
  if isinstance(matrix, SparseMatrix):
    return 'it has no kernel for a SparseMatrix'
  book = isinstance(matrix, CodebookMatrix)
  if (matrix.codebook if book else matrix.step).shape[1] != 1:
    return 'its kernels know no runs of inputs'
  return tpu.why_not(matrix) if device == 'tpu' else ''


def product(
  x: jax.Array,
  matrix: Matrix,
  mode: str,
  *,
  device: str | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Returns x W, float32 [..., N].

  Args:
    x: float32 [..., K], activations.
    matrix: a compressed matrix that `why_not` accepts.
    mode: mode of arithmetic, one of `rounding.MODES`.
    device: 'gpu' or 'tpu'; None: the default one.
    interpret: whether kernels are run by XLA, on any device.
  """
  device = device or jax.default_backend()
  if device == 'tpu':
    return tpu.product(x, matrix, mode, interpret=interpret)
  operands = gpu.operands(x.reshape(-1, matrix.shape[0]), matrix, mode)
  y = gpu.multiply(
    operands.words,
    operands.x,
    operands.tables,
    operands.decoding,
    interpret=interpret,
  )
  return operands.scaled(y).reshape(*x.shape[:-1], matrix.shape[1])
