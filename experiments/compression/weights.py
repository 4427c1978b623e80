"""Weights: safetensors, PyTorch and bwz by their suffix, Orbax directories."""

import importlib
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from bandwidth import coding
from bandwidth.files import replace_bytes
from experiments.compression import orbax

Arrays = dict[str, np.ndarray]

READABLE = ('.safetensors', '.pt', '.pth', '.bin', '.bwz')
WRITABLE = ('.bwz', '.safetensors')

_NOT_IN_NUMPY = ('bfloat16', 'float8_e4m3fn', 'float8_e5m2')
_SAFETENSORS_TYPES = {
  'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16',
  'F8_E4M3': 'float8_e4m3fn', 'F8_E5M2': 'float8_e5m2', 'I64': 'int64',
  'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U64': 'uint64',
  'U32': 'uint32', 'U16': 'uint16', 'U8': 'uint8', 'BOOL': 'bool',
  'C64': 'complex64',
}  # fmt: skip


def read_weights(path: pathlib.Path) -> Arrays:
  """Reads every array of a file, or of an Orbax checkpoint.

  Args:
    path: with one of the suffixes `READABLE`. A PyTorch file is a state
      dictionary, read with `weights_only`, and needs torch. Or a directory, see
      `orbax.find_network`.

  Raises:
    ValueError: the suffix is unknown, the file is malformed or not there or
      holds no array, torch is not installed, or the directory holds no
      checkpoint.
  """
  if path.is_dir():
    arrays = _read_checkpoint(path)
  elif not path.is_file():
    raise ValueError(f'input={str(path)!r} is not there')
  elif path.suffix not in READABLE:
    raise ValueError(
      f'input={str(path)!r} has none of the suffixes {", ".join(READABLE)}'
    )
  else:
    arrays = _READERS.get(path.suffix, _read_torch)(path)
  if not arrays:
    raise ValueError(f'input={str(path)!r} holds no array under a name')
  return arrays


def _read_bwz(path: pathlib.Path) -> Arrays:
  try:
    return coding.read_arrays(path)
  except ValueError as error:
    raise ValueError(_malformed(path, error)) from error


def _read_checkpoint(path: pathlib.Path) -> Arrays:
  try:
    found = orbax.find_network(path)
    arrays = orbax.read_network(found) if found else {}
  except Exception as error:
    # Neither Orbax nor what it stores with has a class of errors for this.
    raise ValueError(_malformed(path, error)) from error
  if found is None:
    raise ValueError(
      f'input={str(path)!r} is a directory without an Orbax checkpoint'
    )
  return arrays


def _malformed(path: pathlib.Path, error: Exception) -> str:
  text = (str(error).strip() or type(error).__name__).splitlines()[0]
  return f'input={str(path)!r} is malformed: {text}'


def _read_safetensors(path: pathlib.Path) -> Arrays:
  import safetensors

  try:
    views = safetensors.deserialize(path.read_bytes())
    return {name: _from_view(view) for name, view in sorted(views)}
  except (safetensors.SafetensorError, ValueError, TypeError) as error:
    raise ValueError(_malformed(path, error)) from error


def _from_view(view: Mapping[str, Any]) -> np.ndarray:
  dtype = view['dtype']
  if dtype not in _SAFETENSORS_TYPES:
    raise ValueError(f'an array of {dtype}, which NumPy lacks')
  kind = coding.tensors.dtype_of(_SAFETENSORS_TYPES[dtype])
  return np.frombuffer(view['data'], kind).reshape(view['shape'])


def _read_torch(path: pathlib.Path) -> Arrays:
  try:
    torch = importlib.import_module('torch')
  except ImportError:
    raise ValueError(
      f'input={str(path)!r} needs PyTorch: pip install torch'
    ) from None
  try:
    with warnings.catch_warnings():
      # Of pickles that are no state dictionaries; the error says so too.
      warnings.simplefilter('ignore')
      state = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:
    # torch has no class of errors for files that it can't read.
    raise ValueError(_malformed(path, error)) from error
  if not isinstance(state, Mapping):
    raise ValueError(f'input={str(path)!r} is no state dictionary')
  arrays = {}
  for name, value in state.items():
    if isinstance(value, torch.Tensor):
      try:
        arrays[name] = _from_torch(torch, value.detach())
      except (TypeError, RuntimeError) as error:
        raise ValueError(f'{_malformed(path, error)} ({name})') from error
  return arrays


def _from_torch(torch: Any, value: Any) -> np.ndarray:
  name = str(value.dtype).removeprefix('torch.')
  if name in _NOT_IN_NUMPY:
    # As integers of the same size.
    plain = torch.int16 if value.dtype.itemsize == 2 else torch.int8
    return value.view(plain).numpy().view(coding.tensors.dtype_of(name))
  return value.numpy()


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """Writes arrays as safetensors, aside and renamed.

  Raises:
    ValueError: safetensors have no such dtype.
    OSError: the file can't be written; the old one stands.
  """
  import safetensors.numpy

  known = _SAFETENSORS_TYPES.values()
  for name, array in arrays.items():
    if array.dtype.name not in known:
      raise ValueError(
        f'output={str(path)!r}: safetensors hold no {array.dtype} ({name})'
      )
  whole = {name: np.asarray(a, order='C') for name, a in arrays.items()}
  replace_bytes(path, safetensors.numpy.save(whole))


_READERS = {'.bwz': _read_bwz, '.safetensors': _read_safetensors}
