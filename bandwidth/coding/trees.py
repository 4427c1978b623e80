"""Saves parameter trees with their codebooks in one file, and loads them."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bandwidth import tree
from bandwidth.base import Masks, Params, unknown_name
from bandwidth.coding import tensors
from bandwidth.coding.container import write
from bandwidth.coding.ledger import Ledger
from bandwidth.coding.reader import read_arrays


def save_tree(
  path: str | os.PathLike[str],
  params: Params,
  codebooks: Mapping[str, tensors.Storable] | None = None,
  *,
  masks: Masks | None = None,
  metadata: Mapping[str, Any] | None = None,
  coder: str = 'auto',
) -> Ledger:
  """Writes a tree of parameters, and returns the bytes of the file.

  Arrays with a codebook are stored as codes, and are read back as the values of
  the codebook in the dtype of the parameter; all others are kept bit for bit.
  Names join the keys by slashes: `Conv_0/kernel`; the first of a list is `0`.

  Args:
    path: file to write, replaced if it exists.
    params: any pytree of arrays. None and empty containers hold no array; only
      `load_tree` with `like` restores them.
    codebooks: by name, results of `bandwidth.quantization`: `Codebook`s, as of
      `share_params`, `read_codebooks` and `ternary_params`, or `UniformLevels`;
      or tensors of a file. None: no array has a codebook.
    masks: a tree like `params`, see `base.Masks`. Weights whose mask is False
      are stored as zeros, and must be zero in a codebook. None: all are kept.
    metadata: any JSON object to store with the tree; None: {}.
    coder: entropy coders to try, one of `symbols.CODERS`.

  Raises:
    ValueError: two arrays have the same name; a name is a prefix of another's
      (`{'a': x, 'a/b': y}`); a leaf is not an array; a codebook has the name of
      no parameter, another shape, or a non-zero value where a mask prunes; or
      as `write`.
    OSError: the file cannot be written; the old one is untouched.

  >>> import pathlib, tempfile
  >>> from bandwidth import quantization
  >>> params = {'a': {'bias': np.float32([3]), 'kernel': np.float32([1, 2])}}
  >>> rules = [('.*/kernel', 1), ('.*', None)]
  >>> shared = quantization.share_params(params, rules)
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'model.bwz'
  >>> ledger = save_tree(path, shared.params, shared.codebooks)
  >>> ledger.total == path.stat().st_size
  True
  >>> load_tree(path)['a']['kernel']
  array([1.5, 1.5], dtype=float32)
  """
  leaves = _named_arrays('params', params)
  tree.nested(leaves.items())
  codebooks = codebooks or {}
  for name in codebooks:
    if name not in leaves:
      raise ValueError(unknown_name('codebooks', name, leaves))
  pruned = {} if masks is None else _pruned(params, masks)
  made: dict[str, tensors.Storable] = {}
  for name, leaf in leaves.items():
    where = pruned.get(name)
    if name in codebooks:
      made[name] = _checked(name, codebooks[name], leaf, where)
    elif where is not None:
      made[name] = np.where(where, np.zeros((), leaf.dtype), leaf)
    else:
      made[name] = leaf
  return write(path, made, metadata=metadata, coder=coder)


def _named_arrays(argument: str, given: Any) -> dict[str, np.ndarray]:
  """Leaves on the host by name; raises ValueError if a name occurs twice."""
  found: dict[str, np.ndarray] = {}
  for name, leaf in tree.named_leaves(given):
    try:
      found[name] = np.asarray(jax.device_get(leaf))
    except TypeError as error:
      raise ValueError(f'{argument}: {name} is no array: {error}') from None
  return found


def _pruned(params: Params, masks: Masks) -> dict[str, np.ndarray]:
  """True where a weight is pruned, for the parameters that lose any."""
  kept = _named_arrays('masks', masks)
  leaves = dict(tree.named_leaves(params))
  if strange := kept.keys() ^ leaves.keys():
    raise ValueError(f'masks are not shaped as params: see {min(strange)!r}')
  found = {}
  for name, mask in kept.items():
    shape = np.shape(leaves[name])
    if mask.dtype != bool or mask.shape not in ((), shape):
      raise ValueError(
        f'masks: {name} is {mask.dtype} {mask.shape}, not bool {shape}'
      )
    if not mask.all():
      found[name] = np.broadcast_to(~mask, shape)
  return found


def _checked(
  name: str,
  codebook: tensors.Storable,
  leaf: np.ndarray,
  pruned: np.ndarray | None,
) -> tensors.Tensor:
  """The tensor of a parameter that has a codebook."""
  try:
    tensor = tensors.as_tensor(codebook, dtype=leaf.dtype.name)
  except ValueError as error:
    raise ValueError(f'codebooks: {name}: {error}') from None
  if tensor.shape != leaf.shape:
    raise ValueError(
      f'codebooks: {name} has shape {tensor.shape}, the parameter {leaf.shape}'
    )
  if pruned is not None and tensor.to_array()[pruned].any():
    raise ValueError(f'codebooks: {name} is not zero where its mask prunes')
  return tensor


def load_tree(
  path: str | os.PathLike[str], *, like: Params | None = None
) -> Any:
  """Reads all arrays of a file as a tree.

  Args:
    path: a .bwz file, such as `save_tree` writes.
    like: a tree of arrays, or of their shapes, with the names of the file.
      None: nested dictionaries, one level for each slash.

  Returns:
    NumPy arrays in the dtypes of the file, in a tree like `like`.

  Raises:
    ValueError: as `open_file`; a name is a prefix of another's; or `like` has
      other names or shapes.
    OSError: the file cannot be read.
  """
  arrays = read_arrays(path)
  if like is None:
    return tree.nested(arrays.items())
  try:
    filled = tree.fill(like, arrays)
  except ValueError as error:
    raise ValueError(f'like: {str(error).removeprefix("named: ")}') from None
  for name, leaf in tree.named_leaves(like):
    if np.shape(leaf) != arrays[name].shape:
      raise ValueError(
        f'like: {name} has shape {np.shape(leaf)}, in the file '
        f'{arrays[name].shape}'
      )
  return filled
