"""Compresses the arrays of any network, without training, and measures it."""

import contextlib
import pathlib
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from bandwidth import coding, pruning, quantization
from bandwidth.rate_allocation import is_large
from experiments.runtime import table

BITS = range(1, 9)


def compress_array(
  name: str,
  array: np.ndarray,
  *,
  sparsity: float,
  bits: int,
  tolerance: float | None,
) -> coding.CodebookTensor:
  """Prunes an array and lets what is left share values.

  Args:
    name: of the array, for error messages.
    array: floating-point, of two or more axes.
    sparsity: fraction of the elements that become zero.
    bits: of the codes; with a tolerance, the most that are tried.
    tolerance: of the relative error `|w - q| / |w|` (Frobenius norms), pruning
      included. None: `bits` whatever the error.

  Raises:
    ValueError: an element is not finite, or no number of bits up to `bits`
      keeps the tolerance.
  """
  with np.errstate(over='ignore'):
    weights = np.asarray(array, np.float32)
  if not np.isfinite(weights).all():
    raise ValueError(
      f'input: {name} has elements that are not finite in float32'
    )
  mask = None
  if sparsity:
    pruned = pruning.prune_params({name: weights}, sparsity)
    mask = np.asarray(pruned.masks[name])
    weights = np.where(mask, weights, 0)
  norm = float(np.linalg.norm(np.asarray(array, np.float64)))
  error = float('inf')
  for width in BITS if tolerance is not None else (bits,):
    if width > bits:
      break
    sharing = quantization.Sharing(
      entries=2**width, reserve_zero=mask is not None
    )
    # Nothing is retrained, so the least error wins; from a linear start k-means
    # stops far from it where an array has outliers.
    codebook = quantization.fit_codebook(
      weights, sharing, mask=mask, solver=quantization.exact_kmeans()
    )
    tensor = coding.CodebookTensor(
      codebook.codes, codebook.centroids, dtype=array.dtype.name
    )
    error = relative_error(array, tensor.to_array(), norm)
    if tolerance is None or error <= tolerance:
      return tensor
  raise ValueError(
    f'tolerance={tolerance}: {name} has a relative error of {error:.3g} with '
    f'bits={bits} and sparsity={sparsity}'
  )


def relative_error(
  array: np.ndarray, decoded: np.ndarray, norm: float | None = None
) -> float:
  """Returns `|w - q| / |w|` in Frobenius norms; 0 where both are the same."""
  if np.array_equal(array, decoded, equal_nan=array.dtype.kind in 'fc'):
    return 0.0
  wide = np.asarray(array, np.float64)
  norm = float(np.linalg.norm(wide)) if norm is None else norm
  difference = float(np.linalg.norm(wide - np.asarray(decoded, np.float64)))
  return difference / norm if norm else difference


def compress_weights(
  arrays: Mapping[str, np.ndarray],
  *,
  sparsity: float,
  bits: int,
  tolerance: float | None,
  smallest: int,
) -> dict[str, Any]:
  """Compresses the large arrays of a network; the others stay as they are."""
  out: dict[str, Any] = {}
  for name, array in arrays.items():
    if is_large(array, smallest):
      out[name] = compress_array(
        name, array, sparsity=sparsity, bits=bits, tolerance=tolerance
      )
    else:
      out[name] = array
  if not any(isinstance(t, coding.CodebookTensor) for t in out.values()):
    raise ValueError(
      f'smallest={smallest}: no array of the input has two axes and so many '
      'elements'
    )
  return out


def report(
  arrays: Mapping[str, np.ndarray], ledger: coding.Ledger, path: pathlib.Path
) -> None:
  """Prints the table of a file, decoding it once more."""
  decoded = coding.read_arrays(path)
  plain: list[dict[str, Any]] = [dict(row) for row in ledger.rows()]
  rows = [
    {
      'array': row['name'],
      'shape': 'x'.join(map(str, row['shape'])),
      'density': round(row['density'], 4),
      'weight_bits': round(row['weight_bits'], 2),
      'index_bits': round(row['index_bits'], 2),
      'bytes': row['bytes'],
      'relative_error': round(
        relative_error(arrays[row['name']], decoded[row['name']]), 5
      ),
    }
    for row in plain
  ]
  table.show(rows)
  dense = sum(array.nbytes for array in arrays.values())
  size = path.stat().st_size
  print(
    f'{dense:,} bytes of arrays -> {size:,} bytes on disk, {dense / size:.2f}x'
  )


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Generator[None]:
  """Names the output in an error of the system, which names the file aside."""
  try:
    yield
  except OSError as error:
    raise ValueError(
      f'output={str(path)!r} cannot be written: {error.strerror}'
    ) from error
