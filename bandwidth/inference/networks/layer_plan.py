"""Which form of each layer of a network is fastest here, measured in its place.

A layer is timed alone, with the input that it has in the network: a
convolution's patches, a product's rows and what XLA makes of the dense layer
are all counted. What was measured is kept in a file for each device, backend,
mode and version, as long as the kernels stay what they are.
"""

import functools
import hashlib
import itertools
import json
import math
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import report, tree
from bandwidth.files import replace_text
from bandwidth.inference import backends, native, planning
from bandwidth.inference.matrices import is_matrix
from bandwidth.inference.networks.linen import CompressedNetwork

_MOST_COPIES = 16


def flax_forms(names: Iterable[str]) -> dict[str, str]:
  """Returns forms for `inference.load_compressed`, by name of a tensor.

  Of Flax's layers, those that a compressed matrix can stand in for call it
  kernel or embedding; the others want arrays.
  """
  kept = ('kernel', 'embedding')
  return {name: 'dense' for name in names if name.split('/')[-1] not in kept}


class LayerCall(NamedTuple):
  """A layer as a network calls it."""

  module: nn.Module  # the layer, unbound
  shape: tuple[int, ...]  # of its input
  dtype: Any  # of its input


def plan_cache_path(
  *,
  backend: str,
  mode: str,
  kernels: str = '',
  directory: pathlib.Path | None = None,
) -> pathlib.Path:
  """Returns the file that keeps what was measured here.

  Args:
    backend: one of `inference.BACKENDS`.
    mode: of arithmetic, one of `inference.MODES`.
    kernels: of `native.INSTRUCTIONS`; empty: those of the environment.
    directory: of the file; None: $XDG_CACHE_HOME/bandwidth/plans, or
      ~/.cache/bandwidth/plans.
  """
  if directory is None:
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    directory = pathlib.Path(base) / 'bandwidth' / 'plans'
  told = hashlib.sha256()
  # What `auto` stands for, and the kernels.
  chosen = os.environ.get(backends.VARIABLE, '')
  kernels = kernels or os.environ.get(native.VARIABLE, '')
  for fact in (
    report.device(), backend, mode, jax.__version__, chosen, kernels,
  ):  # fmt: skip
    told.update(f'{fact}\0'.encode())
  sources = pathlib.Path(__file__).parent.parent
  for path in sorted(sources.rglob('*')):
    if path.suffix in ('.py', '.cc', '.h'):
      told.update(path.read_bytes())
  return directory / f'{backend}-{mode}-{told.hexdigest()[:16]}.json'


def read_cache(path: pathlib.Path) -> dict[str, dict[str, float]]:
  """Returns seconds by kind, by layer; none where the file is not of that."""
  try:
    found = json.loads(path.read_text('utf-8'))
    seconds = {
      str(layer): {str(kind): float(value) for kind, value in each.items()}
      for layer, each in found.items()
    }
  except (OSError, ValueError, AttributeError, TypeError):
    return {}
  times = [value for each in seconds.values() for value in each.values()]
  if not all(math.isfinite(value) and value > 0 for value in times):
    return {}
  if not all('dense' in each for each in seconds.values()):
    return {}
  return seconds


def layer_calls(
  model: nn.Module, variables: Any, *inputs: Any
) -> dict[str, LayerCall]:
  """Returns the calls of dense layers and convolutions, by name of the kernel.

  Args:
    model: the network; nothing is computed.
    variables: of the network, abstract and dense.
    *inputs: abstract.

  >>> model, x = nn.Dense(2), jax.ShapeDtypeStruct((1, 3), jnp.float32)
  >>> variables = jax.eval_shape(model.init, jax.random.key(0), x)
  >>> layer_calls(model, variables, x)['params/kernel'].shape
  (1, 3)
  """
  calls: dict[str, LayerCall] = {}

  def record(
    call: Callable[..., Any], args: Any, kwargs: Any, context: Any
  ) -> Any:
    module = context.module
    if isinstance(module, nn.Dense | nn.Conv) and (
      context.method_name == '__call__'
    ):
      name = '/'.join(('params', *module.path, 'kernel'))
      layer = module.clone(parent=None, name=None)
      calls.setdefault(name, LayerCall(layer, args[0].shape, args[0].dtype))
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    jax.eval_shape(model.apply, variables, *inputs)
  return calls


def measure_layer(
  call: LayerCall,
  forms: Mapping[str, Callable[[], Any]],
  *,
  backend: str,
  mode: str,
  copies: int = 1,
) -> dict[str, float]:
  """Returns the seconds of a layer with each form of its kernel.

  Args:
    call: the layer and its input.
    forms: by kind, what makes the matrix, or the dense kernel.
    backend: one of `inference.BACKENDS`.
    mode: of arithmetic, one of `inference.MODES`.
    copies: of the kernel that take turns: what other layers read between two
      calls drives it out of the cache, which a kernel alone would stay in.

  Raises:
    ValueError: the backend can't run it.
  """
  network = CompressedNetwork(call.module, backend=backend, mode=mode)
  x = jnp.ones(call.shape, call.dtype)
  features = getattr(call.module, 'features', 1)
  bias = {'bias': jnp.zeros(features)}
  programs = []
  for make in forms.values():
    params = {'kernel': make(), **bias}
    if not getattr(call.module, 'use_bias', False):
      del params['bias']
    variables = {'params': jax.tree.map(jnp.asarray, params)}
    with warnings.catch_warnings():
      # A layer that decodes its kernel is timed so.
      warnings.simplefilter('ignore', UserWarning)
      compiled = jax.jit(network.apply).lower(variables, x).compile()
    programs.append(_in_turns(compiled, variables, x, copies))
  return dict(zip(forms, planning.fastest(programs), strict=True))


def _in_turns(
  compiled: Callable[..., Any], variables: Any, x: jax.Array, copies: int
) -> Callable[[], Any]:
  """A program that reads other memory each time."""
  made = itertools.cycle(
    [jax.tree.map(jnp.array, variables) for _ in range(copies)]
  )
  return lambda: compiled(next(made), x)


def plan_layers(
  calls: Mapping[str, LayerCall],
  variables: Any,
  dense: Callable[[str], np.ndarray],
  *,
  backend: str = 'auto',
  mode: str = 'exact',
  cache: pathlib.Path | None = None,
) -> planning.Plan:
  """Keeps the kernel of each layer in the form that is fastest here.

  Args:
    calls: of `layer_calls`. Matrices of no layer among them stay as they are.
    variables: nested dictionaries, as `inference.load_compressed` gives them.
    dense: returns a kernel of a name as a network without compression has it.
    backend: one of `inference.BACKENDS`.
    mode: of arithmetic, one of `inference.MODES`.
    cache: file of what was measured before, which is written anew where layers
      are missing. None: all are measured.

  Raises:
    ValueError: the backend can't run a matrix.
    OSError: the file can't be written.
  """
  weights = {
    tree.path_name(path): math.prod(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      variables, is_leaf=is_matrix
    )
    if is_matrix(leaf) and tree.path_name(path) in calls
  }
  known = read_cache(cache) if cache else {}
  before = len(known)
  choices: dict[str, planning.Choice] = {}

  def choose(path: Any, leaf: Any) -> Any:
    name = tree.path_name(path)
    if not is_matrix(leaf) or name not in calls:
      return leaf
    call, kinds = calls[name], planning.candidates(leaf)
    copies = -(-sum(weights.values()) // max(weights[name], 1))
    copies = min(copies, _MOST_COPIES)
    key = _key(call, planning.signature(leaf, kinds), copies)
    forms = {kind: functools.partial(planning.converted, leaf, kind)
             for kind in kinds}  # fmt: skip
    forms['dense'] = functools.partial(dense, name)
    if set(known.get(key, ())) != set(forms):
      known[key] = measure_layer(
        call, forms, backend=backend, mode=mode, copies=copies
      )
    choices[name] = planning.choose_form(known[key])
    return forms[choices[name].kind]()

  made = jax.tree_util.tree_map_with_path(choose, variables, is_leaf=is_matrix)
  if cache and len(known) != before:
    cache.parent.mkdir(parents=True, exist_ok=True)
    replace_text(cache, json.dumps(known, indent=1) + '\n')
  return planning.Plan(made, choices)


def _key(call: LayerCall, matrix: tuple[Any, ...], copies: int) -> str:
  """What the times of a layer hang on."""
  module = ' '.join(repr(call.module).split())
  dtype = jnp.dtype(call.dtype).name
  return f'{module} of {dtype} {list(call.shape)}: {matrix}, {copies}'
