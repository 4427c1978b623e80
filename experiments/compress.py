"""Compresses any pretrained weights into one file, without training.

    python -m experiments.compress --input model.safetensors --output model.bwz
    python -m experiments.compress --input model.bwz --output model.safetensors
    python -m experiments.compress --input runs/W --output model.bwz
    python -m experiments.compress --config configs/… --workdir W
    python -m experiments.compress --network minilm --output minilm.bwz

The last two train and compress as a config says, see `compress_training`, and
make a file of a known network that runs from its codes, see `compress_network`.

Arrays of two or more axes and at least `--smallest` elements are pruned by
magnitude (`--sparsity`) and share 2^bits values each (`--bits`, or as few bits
as keep the relative error of each array below `--tolerance`). Or they get
levels of uniform grids, whose bits go where they pay, so that the whole file
takes `--rate` bits for each weight. All other arrays are kept to the bit. What
is printed was measured on the file that was written.
"""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bandwidth import coding, pruning, quantization
from experiments.compression.rate import compress_to_rate, is_large
from experiments.compression.weights import (
  READABLE,
  WRITABLE,
  read_weights,
  write_safetensors,
)
from experiments.runtime import table

_BITS = range(1, 9)


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
    name: for error messages.
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
  for width in _BITS if tolerance is not None else (bits,):
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


def _check_output(path: pathlib.Path) -> None:
  """Says what is wrong with it before minutes of work."""
  if path.suffix not in WRITABLE:
    raise ValueError(
      f'output={str(path)!r} has none of the suffixes {", ".join(WRITABLE)}'
    )
  if path.is_dir():
    raise ValueError(f'output={str(path)!r} is a directory')
  if not path.parent.is_dir():
    raise ValueError(f'output={str(path)!r}: its directory is not there')


def _run(options: argparse.Namespace) -> None:
  _check_output(options.output)
  restores = options.input.suffix == '.bwz' and not options.input.is_dir()
  if restores == (options.output.suffix == '.bwz'):
    raise ValueError(
      f'input={str(options.input)!r}, output={str(options.output)!r}: one of '
      'the two must be a .bwz file'
    )
  if options.tolerance is not None and not options.tolerance > 0:
    raise ValueError(f'tolerance={options.tolerance} is not positive')
  if not 0 <= options.sparsity < 1:
    raise ValueError(f'sparsity={options.sparsity} is not in [0, 1)')
  _check_rate(options)
  bits = options.bits
  if bits is None:
    bits = 4 if options.tolerance is None else 8
  if bits not in _BITS:
    raise ValueError(f'bits={bits} is not in 1 to {_BITS[-1]}')
  if options.smallest < 0:
    raise ValueError(f'smallest={options.smallest} is negative')
  arrays = read_weights(options.input)
  if restores:
    with writing(options.output):
      write_safetensors(options.output, arrays)
    print(f'{len(arrays)} arrays, {options.output.stat().st_size:,} bytes')
    return
  if options.rate is None:
    tensors = compress_weights(
      arrays,
      sparsity=options.sparsity,
      bits=bits,
      tolerance=options.tolerance,
      smallest=options.smallest,
    )
  else:
    tensors = compress_to_rate(
      arrays,
      rate=options.rate,
      smallest=options.smallest,
      coder=options.coder,
    )
  with writing(options.output):
    ledger = coding.write(options.output, tensors, coder=options.coder)
  report(arrays, ledger, options.output)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Names the output in an error of the system, which names the file aside."""
  try:
    yield
  except OSError as error:
    raise ValueError(
      f'output={str(path)!r} cannot be written: {error.strerror}'
    ) from error


def _check_rate(options: argparse.Namespace) -> None:
  if options.rate is None:
    return
  if not options.rate > 0:
    raise ValueError(f'rate={options.rate} is not positive')
  if options.bits or options.sparsity or options.tolerance:
    raise ValueError(
      f'rate={options.rate} goes with none of bits, sparsity and tolerance, '
      'which it chooses itself'
    )


def main(argv: Sequence[str]) -> int:
  """Compresses or restores; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='compress',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  path = pathlib.Path
  readable = f'one of {", ".join(READABLE)}, or a directory written by Orbax'
  add('--input', type=path, required=True, help=readable)
  add('--output', type=path, required=True, help=' or '.join(WRITABLE))
  add('--bits', type=int, help='of the codes; default 4, or 8 with a tolerance')
  add('--sparsity', type=float, default=0.0, help='fraction to prune')
  add('--tolerance', type=float, help='of the relative error of each array')
  add('--rate', type=float, help='bits of the whole file for each weight')
  add('--smallest', type=int, default=1024, help='elements; smaller are kept')
  add('--coder', default='auto', choices=('fixed', 'huffman', 'ans', 'auto'))
  options = parser.parse_args(argv)
  try:
    _run(options)
  except (ValueError, OSError) as error:
    message = ' '.join(str(error).split())
    print(f'compress: error: {message}', file=sys.stderr)
    return 2
  return 0


def _has_flag(argv: Sequence[str], name: str) -> bool:
  return any(a.lstrip('-').split('=')[0] == name for a in argv)


if __name__ == '__main__':
  if _has_flag(sys.argv[1:], 'config'):
    from experiments.compression.training import program

    program()
  if _has_flag(sys.argv[1:], 'network'):
    from experiments.compression import networks

    sys.exit(networks.main(sys.argv[1:]))
  sys.exit(main(sys.argv[1:]))
