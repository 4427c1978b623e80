"""Files of weights, by their suffix: safetensors, PyTorch, bwz."""

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bandwidth import coding
from experiments.files import replace_bytes

Arrays = dict[str, np.ndarray]

READABLE = ('.safetensors', '.pt', '.pth', '.bin', '.bwz')
WRITABLE = ('.bwz', '.safetensors')


def read_weights(path: pathlib.Path) -> Arrays:
  """Reads every array of a file, in its order.

  Args:
    path: with one of the suffixes `READABLE`. A PyTorch file is a state
      dictionary, read with `weights_only`, and needs torch.

  Raises:
    ValueError: the suffix is unknown, the file is malformed or not there, or
      torch is not installed.
  """
  if path.suffix not in READABLE:
    raise ValueError(
      f'input={str(path)!r} has none of the suffixes {", ".join(READABLE)}'
    )
  if not path.is_file():
    raise ValueError(f'input={str(path)!r} is not there')
  if path.suffix == '.bwz':
    return coding.read_arrays(path)
  if path.suffix == '.safetensors':
    return _read_safetensors(path)
  return _read_torch(path)


def _read_safetensors(path: pathlib.Path) -> Arrays:
  import safetensors
  import safetensors.numpy

  try:
    return safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, ValueError, TypeError) as error:
    raise ValueError(f'input={str(path)!r} is malformed: {error}') from error


def _read_torch(path: pathlib.Path) -> Arrays:
  try:
    torch = importlib.import_module('torch')
  except ImportError:
    raise ValueError(
      f'input={str(path)!r} needs PyTorch: pip install torch'
    ) from None
  try:
    state = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:
    # torch has no class of errors for files that it can't read.
    text = str(error).splitlines()[0]
    raise ValueError(f'input={str(path)!r} is malformed: {text}') from error
  if not isinstance(state, Mapping):
    raise ValueError(f'input={str(path)!r} is no state dictionary')
  return {
    name: _from_torch(torch, value)
    for name, value in state.items()
    if isinstance(value, torch.Tensor)
  }


def _from_torch(torch: Any, value: Any) -> np.ndarray:
  if value.dtype == torch.bfloat16:
    return value.view(torch.int16).numpy().view(jnp.bfloat16)
  return value.numpy()


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """Writes arrays as safetensors, aside and renamed.

  Raises:
    OSError: the file can't be written; the old one stands.
  """
  import safetensors.numpy

  whole = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
  replace_bytes(path, safetensors.numpy.save(whole))
