"""From `model.bwz` to what runs: entropy coding is undone once, and no more.

Kernels and embeddings become matrices, tensor by tensor, so that beside what is
kept no more than one tensor's codes are in memory. A convolution's kernel
[height, width, in, out] is a matrix that multiplies patches; its inputs are
ordered channel by channel, as `lax.conv_general_dilated_patches` orders those.
An embedding [vocabulary, width] has its vectors as outputs, see `rows_of`.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from bandwidth import coding, tree
from bandwidth.base import unknown_name
from bandwidth.inference import matrices
from bandwidth.inference.matrices import Matrix

FORMS = ('smallest', 'dense', 'codebook', 'sparse')
"""What a tensor can be kept as; `codebook` takes integers of 8 bits in, whose
codes are their values."""

_KERNEL, _EMBEDDING = 'kernel', 'embedding'
_ENTRIES = 256
# Bytes of a weight that is not zero: its column and its code.
_SPARSE_BYTES = 3


def load_compressed(
  path: str | os.PathLike[str], *, forms: Mapping[str, str] | None = None
) -> dict[str, Any]:
  """Reads a file; kernels stay compressed.

  Args:
    path: of a .bwz file.
    forms: of `FORMS`, by name of a tensor; others are kept as the smallest.

  Returns:
    Nested dictionaries, as `coding.load_tree`. Leaves are matrices where a name
    ends in `kernel` or `embedding` and the file shares at most 256 weights or
    levels, else arrays.

  Raises:
    ValueError: the file is malformed, a form unknown, or for a tensor that the
      file lacks.
    OSError: the file cannot be read.
  """
  forms = dict(forms or {})
  for name, form in forms.items():
    if form not in FORMS:
      raise ValueError(unknown_name(f'forms[{name!r}]', form, FORMS))
  with coding.open_file(path) as reader:
    for name in forms:
      if name not in reader:
        raise ValueError(unknown_name('forms', name, reader.names))
    return tree.nested(
      (
        name,
        executable(
          name.rpartition('/')[2],
          reader.tensor(name),
          form=forms.get(name, 'smallest'),
        ),
      )
      for name in reader
    )


def executable(
  leaf: str, tensor: coding.Tensor, *, form: str = 'smallest'
) -> Matrix | np.ndarray:
  """Returns what runs of one tensor.

  Args:
    leaf: last part of its name.
    tensor: as the file has it.
    form: of `FORMS`.
  """
  codes_and_book = None
  if form != 'dense' and leaf in (_KERNEL, _EMBEDDING) and _has_axes(tensor):
    codes_and_book = _shared(tensor)
  if codes_and_book is None:
    return tensor.to_array()
  by_output, book = _by_output(leaf, tensor.shape, *codes_and_book)
  if book is None:
    return tensor.to_array()
  if _is_sparse(leaf, by_output, book, form):
    return matrices.sparse_matrix(by_output, book[0, 0])
  return matrices.codebook_matrix(by_output, book)


def _has_axes(tensor: coding.Tensor) -> bool:
  return len(tensor.shape) >= 2 and math.prod(tensor.shape) > 0


def _shared(tensor: coding.Tensor) -> tuple[np.ndarray, np.ndarray] | None:
  """Codes [shape] and codebook [*grid, entries]; None where there are none."""
  if isinstance(tensor, coding.CodebookTensor):
    if tensor.codebook.shape[-1] > _ENTRIES:
      return None
    return tensor.codes, tensor.codebook
  if isinstance(tensor, coding.UniformTensor):
    return _levels_as_codes(tensor)
  return None


def _levels_as_codes(
  tensor: coding.UniformTensor,
) -> tuple[np.ndarray, np.ndarray] | None:
  """Codes of levels, and what they mean."""
  least, most = int(tensor.levels.min()), int(tensor.levels.max())
  if most - least >= _ENTRIES:
    return None
  # Wrapped to bytes a difference below 256 is what it is.
  codes = tensor.levels.astype(np.uint8)
  codes -= np.uint8(least % _ENTRIES)
  # Levels that do not occur need no code: fewer may do with fewer bits.
  present = np.flatnonzero(_counts(codes))
  place = np.zeros(_ENTRIES, np.uint8)
  place[present] = np.arange(len(present), dtype=np.uint8)
  values = (present + least).astype(np.float32)
  return place[codes], tensor.step[..., None] * values


def _counts(codes: np.ndarray) -> np.ndarray:
  """How often each of 256 codes occurs; NumPy would widen all at once."""
  counts = np.zeros(_ENTRIES, np.int64)
  for row in codes:
    counts += np.bincount(row.reshape(-1), minlength=_ENTRIES)
  return counts


def _by_output(
  leaf: str, shape: tuple[int, ...], codes: np.ndarray, book: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
  """Codes [N, K] and codebook [G, H, entries]; None where groups don't fit."""
  grid = (1,) * (len(shape) + 1 - book.ndim) + book.shape[:-1]
  entries = book.shape[-1]
  if leaf == _EMBEDDING:
    if len(shape) != 2:
      return codes, None
    return codes, book.reshape(*grid, entries)
  if len(shape) == 2:
    return codes.T, book.reshape(*grid, entries).transpose(1, 0, 2)
  if any(each != 1 for each in grid[:-1]):
    return codes, None
  # Taps within a channel, as patches are.
  order = (len(shape) - 1, len(shape) - 2, *range(len(shape) - 2))
  rows = codes.transpose(order).reshape(shape[-1], -1)
  return rows, book.reshape(grid[-1], 1, entries)


def _is_sparse(
  leaf: str, codes: np.ndarray, book: np.ndarray, form: str
) -> bool:
  """Whether a matrix is kept as what of it is not zero."""
  groups, runs, entries = book.shape
  if form == 'codebook' or leaf == _EMBEDDING or groups * runs > 1:
    return False
  if form == 'sparse':
    return True
  nonzero = int(_counts(codes)[:entries][book[0, 0] != 0].sum())
  bits = matrices.bits_for(entries)
  return _SPARSE_BYTES * nonzero < codes.size * bits // 8
