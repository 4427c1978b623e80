"""Files of a trained network: written by stages, measured when read again.

A stage names its files as pairs (name, coder). The coder `safetensors` keeps
the arrays as they are; the others are those of `bandwidth.coding`. The last
file of a run is its `model.bwz`.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bandwidth import coding, tree
from bandwidth.base import check_known
from bandwidth.report import MemoryReport, MemoryStage, MemoryTensor
from experiments.compression.baselines import baselines
from experiments.compression.weights import read_weights, write_safetensors
from experiments.config import to_json

SAFETENSORS = 'safetensors'
MODEL = 'model.bwz'


def check_files(files: Any) -> tuple[tuple[str, str], ...]:
  """Returns the pairs of a stage.

  Raises:
    ValueError: they are no pairs, a name can't be a file's, or a coder is
      unknown.
  """
  known = (*coding.CODERS, SAFETENSORS)
  pairs = []
  for entry in files:
    if not isinstance(entry, list | tuple) or len(entry) != 2:
      raise ValueError(f'files={files!r} are not pairs (name, coder)')
    name, coder = map(str, entry)
    if not name or '/' in name or name.startswith('.'):
      raise ValueError(f'files: {name!r} can be no file')
    check_known('files.coder', coder, known)
    pairs.append((name, coder))
  return tuple(pairs)


def paths_of(
  files: Sequence[tuple[str, str]], directory: pathlib.Path
) -> dict[str, pathlib.Path]:
  """Returns where each of a run's files is; the last is the model's."""
  paths = {
    name: directory
    / (f'{name}.safetensors' if coder == SAFETENSORS else f'{name}.bwz')
    for name, coder in files
  }
  if files and files[-1][1] != SAFETENSORS:
    paths[files[-1][0]] = directory / MODEL
  return paths


def metadata_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a file says of its network and data, and of no directory."""
  # The last two are of texts, whose networks are not written.
  silent = ('data_dir', 'source', 'memory_limit', 'vocabulary', 'window')
  dataset = {k: v for k, v in config['dataset'].items() if k not in silent}
  return json.loads(to_json({'model': config['model'], 'dataset': dataset}))


def named_arrays(params: Any, model_state: Any) -> dict[str, np.ndarray]:
  """Returns all arrays of a network as a file names them, on the host."""
  variables = jax.device_get({'params': params, **model_state})
  return {name: np.asarray(leaf) for name, leaf in tree.named_leaves(variables)}


def write_file(
  path: pathlib.Path,
  coder: str,
  arrays: Mapping[str, np.ndarray],
  tensors: Mapping[str, coding.Tensor],
  metadata: Mapping[str, Any] | None,
) -> None:
  """Writes a network.

  Args:
    path: where to; written aside and renamed.
    coder: second of the pair (name, coder).
    arrays: all of the network, by name.
    tensors: the compressed form of some parameters, named without `params/`.
    metadata: of a .bwz file.
  """
  if coder == SAFETENSORS:
    write_safetensors(path, arrays)
    return
  compressed = {f'params/{name}': t for name, t in tensors.items()}
  coding.write(path, {**arrays, **compressed}, metadata=metadata, coder=coder)


def read_file(path: pathlib.Path) -> tuple[Any, Any]:
  """Returns parameters and model state of a file.

  Raises:
    ValueError: the file is malformed or holds no parameters.
  """
  return as_variables(read_weights(path), str(path))


def as_variables(arrays: Mapping[str, Any], source: str) -> tuple[Any, Any]:
  """Nests named arrays; returns parameters and model state.

  Args:
    arrays: or shapes, by names whose first part is the collection.
    source: of the arrays, for error messages.

  Raises:
    ValueError: there are no parameters among them.
  """
  nested = tree.nested(arrays.items())
  if 'params' not in nested:
    raise ValueError(f'model={source!r} holds no array named params/…')
  return nested.pop('params'), nested


def check_shapes(found: Any, wanted: Any, source: str) -> None:
  """Raises ValueError where arrays are not those of a network."""
  have = {n: np.shape(leaf) for n, leaf in tree.named_leaves(found)}
  want = {n: np.shape(leaf) for n, leaf in tree.named_leaves(wanted)}
  for name in sorted(have.keys() | want.keys()):
    if have.get(name) != want.get(name):
      raise ValueError(
        f'model={source!r}: {name} is {have.get(name, "not there")}, the '
        f'network of the config has {want.get(name, "none")}'
      )


def memory_report(
  paths: Mapping[str, pathlib.Path],
  accuracy: Callable[[Any, Any], float],
  *,
  with_baselines: bool,
) -> MemoryReport:
  """Measures the files of a run: bytes on disk, accuracy of what they hold.

  Args:
    paths: by name, in order; the last is the model.
    accuracy: `(params, model_state) -> fraction`.
    with_baselines: whether to measure what a user has today, made of the first
      file, beside them.
  """
  networks = {name: read_weights(path) for name, path in paths.items()}
  first, last = next(iter(networks.values())), list(paths.values())[-1]
  dense = 4 * sum(array.size for array in first.values())

  def measured(
    name: str, arrays: Mapping[str, np.ndarray], size: int
  ) -> MemoryStage:
    found = accuracy(*as_variables(arrays, name))
    return MemoryStage(
      name=name, bytes=size, ratio=dense / size, accuracy=found
    )

  stages = tuple(
    measured(name, arrays, paths[name].stat().st_size)
    for name, arrays in networks.items()
  )
  others = baselines(first) if with_baselines else []
  size = last.stat().st_size
  with coding.open_file(last) as reader:
    rows = reader.ledger().tensors
  return MemoryReport(
    dense_bytes=dense,
    file_bytes=size,
    ratio=dense / size,
    stages=stages,
    tensors=tuple(
      MemoryTensor(
        name=row.name,
        shape=row.shape,
        density=row.density,
        weight_bits=row.weight_bits,
        index_bits=row.index_bits,
        bytes=row.bytes,
      )
      for row in rows
    ),
    baselines=tuple(measured(o.name, o.arrays, o.bytes) for o in others),
  )
