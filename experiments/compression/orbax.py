"""Networks in directories that Orbax wrote, as arrays by name on the host."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bandwidth import tree

# Of `training.step.TrainState`: what no other tree has beside each other.
_OF_A_RUN = {'params', 'opt_state', 'reducer_state', 'model_state', 'window'}
_NO_WEIGHTS = ('opt_state', 'step')
_WRITTEN_BY_ORBAX = ('_METADATA', 'manifest.ocdbt')


def find_network(directory: pathlib.Path) -> pathlib.Path | None:
  """Returns where Orbax wrote the tree that a directory holds, or None.

  Args:
    directory: a run's `--workdir`, the directory of a `CheckpointManager`,
      whose newest step counts, or that of one tree, as `StandardCheckpointer`
      and `PyTreeCheckpointer` write it.
  """
  if (directory / 'checkpoints').is_dir():
    directory /= 'checkpoints'
  steps = [
    int(path.name)
    for path in directory.iterdir()
    if path.name.isdecimal() and path.is_dir()
  ]
  if steps:
    directory /= str(max(steps))
  for path in (directory, directory / 'state', directory / 'default'):
    if any((path / name).exists() for name in _WRITTEN_BY_ORBAX):
      return path
  return None


def read_network(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the arrays of a network by name, onto the host.

  Args:
    path: from `find_network`. Of a run's state, the parameters are read,
      'params/…', and the model state, its mean over the workers, by collection,
      'batch_stats/…'; of another tree everything, but for what stands beside
      'params' as 'opt_state' or 'step'.

  Raises:
    ValueError: two arrays have one name.
    Exception: of Orbax, for a malformed checkpoint.
  """
  handler: Any = ocp.PyTreeCheckpointHandler()
  found: Any = handler.metadata(path.absolute())
  wanted: Any = getattr(found, 'tree', found)
  keys = set(wanted) if isinstance(wanted, Mapping) else set()
  is_run = keys >= _OF_A_RUN
  if is_run:
    wanted = {key: wanted[key] for key in ('params', 'model_state')}
  elif 'params' in keys:
    wanted = {k: v for k, v in wanted.items() if k not in _NO_WEIGHTS}
  restored = handler.restore(
    path.absolute(),
    args=ocp.args.PyTreeRestore(
      item=wanted,
      restore_args=jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
      ),
      partial_restore=True,
    ),
  )
  if is_run:
    model_state = jax.tree.map(
      lambda leaf: leaf.mean(axis=0), restored['model_state'] or {}
    )
    restored = {'params': restored['params'], **model_state}
  arrays: dict[str, np.ndarray] = {}
  for name, leaf in tree.named_leaves(restored):
    if name in arrays:
      raise ValueError(f'two arrays have the name {name!r}')
    arrays[name] = np.asarray(leaf)
  return arrays
