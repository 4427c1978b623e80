"""Flax Linen networks that run from compressed parameters.

This module and `layer_plan` alone import Flax, when they are imported.
"""

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from bandwidth.base import unknown_name
from bandwidth.inference.backends import BACKENDS
from bandwidth.inference.networks import decoding, layers
from bandwidth.inference.networks.joined_products import (
  Codes,
  Products,
  join_kernels,
)
from bandwidth.inference.networks.reads import layer_call, reads_of, traced_anew
from bandwidth.inference.networks.variables import (
  Given,
  Packed,
  Path,
  path_of,
  replaced,
  signature,
  split,
  without,
)
from bandwidth.inference.rounding import MODES


class CompressedNetwork:
  """A network whose `apply` takes compressed parameters too.

  Run from their codes, by `inference.matmul`, are layers of exactly these
  types, under `nn.jit`, `nn.remat` and as cells of `nn.RNN` as well:

  - `nn.Dense`;
  - `nn.Conv` of all channels, as a product of patches, or of channels where it
    is of 1x1; without mask, and padded by zeros;
  - `nn.Embed`, by rows, and its `attend`.

  They compute in float32, bfloat16 or float16, with what Flax promotes to it.
  A parameter that anything else reads (another layer or a subclass, a
  convolution in groups, a layer with an own `dot_general`, `nn.scan` over
  layers, `nn.vmap` over experts, a kernel read by hand) is decoded in each call
  and the network sees the array; a warning of one line, the first time, names
  it. Which those are is found out beforehand, by a trace of the call.

  >>> import pathlib, tempfile
  >>> from bandwidth import coding, inference
  >>> class Network(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     return nn.Dense(2, use_bias=False)(x)
  >>> kernel = coding.CodebookTensor(
  ...   np.array([[0, 1], [2, 1], [1, 0]]), np.float32([0, 0.5, -1])
  ... )
  >>> with tempfile.TemporaryDirectory() as directory:
  ...   path = pathlib.Path(directory) / 'model.bwz'
  ...   _ = coding.write(path, {'params/Dense_0/kernel': kernel})
  ...   variables = inference.load_compressed(path)
  >>> network = inference.CompressedNetwork(Network())
  >>> jax.jit(network.apply)(variables, np.float32([1, 2, 4])).tolist()
  [0.0, 1.5]

  Attributes:
    model: the Linen module whose `apply` is wrapped.
  """

  def __init__(
    self, model: nn.Module, *, backend: str = 'auto', mode: str = 'exact'
  ) -> None:
    """Chooses who multiplies.

    Args:
      model: the network, a Linen module.
      backend: name of the backend, one of `inference.BACKENDS`.
      mode: mode of arithmetic, one of `inference.MODES`.

    Raises:
      ValueError: the model is none of Linen, or a name is unknown.
    """
    if not isinstance(model, nn.Module):
      raise ValueError(
        f'model is a {type(model).__name__}, which is no flax.linen.Module; '
        'layers of other libraries call inference.matmul themselves'
      )
    if backend not in BACKENDS:
      raise ValueError(unknown_name('backend', backend, BACKENDS))
    if mode not in MODES:
      raise ValueError(unknown_name('mode', mode, MODES))
    self.model = model
    self._backend, self._mode = backend, mode
    self._plans: dict[Any, _Plan] = {}
    self._told: set[Path] = set()

  def apply(self, variables: Any, *args: Any, **options: Any) -> Any:
    """Runs the network.

    Args:
      variables: as of `nn.Module.apply`; leaves may be matrices.
      *args: positional arguments of `nn.Module.apply`.
      **options: keyword arguments of `nn.Module.apply`.

    Raises:
      ValueError: a matrix has another size than the network asks for.
    """
    return self._run([], variables, args, options)

  def join(self, variables: Any, *args: Any, **options: Any) -> Any:
    """Joins kernels that read the same activations, see `joined_products`.

    Args:
      variables: the variables that `apply` takes, compressed.
      *args: inputs of the network, or their shapes.
      **options: keyword arguments that `apply` takes.

    Returns:
      Variables for `apply`.
    """
    params = join_kernels(
      variables['params'], self._watch(variables, args, options)
    )
    return {**variables, 'params': params}

  def rows(self, variables: Any, *args: Any, **options: Any) -> dict[str, int]:
    """Returns how many rows of activations each kernel multiplies, by name.

    Kernels that are decoded are not among them.

    Args:
      variables: the variables that `apply` takes, compressed.
      *args: inputs of the network, or their shapes.
      **options: keyword arguments that `apply` takes.
    """
    return {
      name: math.prod(x.shape[:-1])
      for name, x in self._watch(variables, args, options)
    }

  def _watch(
    self, variables: Any, args: Any, options: Mapping[str, Any]
  ) -> list[tuple[str, Any]]:
    """Kernels, by name, and what they multiply, in the order of calls."""
    reads: list[tuple[str, Any]] = []
    given = Given.of(args, options)

    def run(arrays: list[Any]) -> None:
      # Matrices stay whole: their shapes are in them.
      own_args, own_options = given.with_arrays(arrays)
      self._run(reads, variables, own_args, own_options)

    with traced_anew():
      jax.eval_shape(run, given.arrays)
    return reads

  def _run(
    self,
    reads: list[tuple[str, Any]],
    variables: Any,
    args: Any,
    options: Mapping[str, Any],
  ) -> Any:
    packed, arrays = split(variables)
    if packed:
      plan = self._plan(variables, packed, args, options)
      variables = replaced(
        variables, functools.partial(self._form, plan, packed)
      )
    run = functools.partial(_run_layer, arrays, Products(reads, {}))
    with nn.intercept_methods(run):
      return self.model.apply(variables, *args, **options)

  def _form(
    self, plan: '_Plan', packed: Mapping[Path, 'Packed'], path: Path
  ) -> Any:
    """What the network gets for a compressed parameter."""
    if path in plan.layers:
      return Codes(
        leaf=packed[path].leaf, backend=self._backend, mode=self._mode
      )
    shape = plan.shapes[path]
    if path in plan.decoded:
      name, (_, matrix, outputs) = '/'.join(path), packed[path]
      return decoding.array_of(name, matrix, shape, outputs)
    # Nobody reads it: an array of its shape, which takes no memory.
    return np.broadcast_to(np.float32(np.nan), shape)

  def _plan(
    self,
    variables: Any,
    packed: Mapping[Path, 'Packed'],
    args: Any,
    options: Mapping[str, Any],
  ) -> '_Plan':
    """Finds out which parameters run from codes, and tells of the others."""
    key = signature((variables, args, options))
    plan = self._plans.get(key)
    if plan is None:
      plan = _make_plan(self.model, variables, packed, args, options)
      if key is not None:
        self._plans[key] = plan
    for path, reason in plan.decoded.items():
      if path not in self._told:
        self._told.add(path)
        name = '/'.join(path)
        warnings.warn(
          f'{name} is decoded in each call, as {reason}; '
          f"load_compressed(forms={{{name!r}: 'dense'}}) does so once",
          stacklevel=4,
        )
    return plan


class _Plan(NamedTuple):
  """What becomes of compressed parameters, by path.

  Attributes:
    shapes: shapes that the network asks for.
    layers: paths of parameters that run from codes.
    decoded: why each other parameter that is read has to be decoded.
  """

  shapes: dict[Path, tuple[int, ...]]
  layers: set[Path]
  decoded: dict[Path, str]


def _make_plan(
  model: nn.Module,
  variables: Any,
  packed: Mapping[Path, Packed],
  args: Any,
  options: Mapping[str, Any],
) -> _Plan:
  """Traces a call with arrays in place of matrices.

  Raises:
    ValueError: a matrix has another size than the network asks for, or is read
      and how it was an array is not known.
  """
  given = Given.of(args, options)
  asked = _shapes(model, variables, given)
  shapes = {}
  for path, each in packed.items():
    name = '/'.join(path)
    guess = each.shape[::-1] if decoding.has_rows(name) else each.shape
    shapes[path] = asked.get(path, guess)
    if not decoding.fits(name, each.shape, shapes[path]):
      raise ValueError(
        f'{name} is a matrix of {each.shape[0]} x {each.shape[1]}; the network '
        f'asks for {shapes[path]}'
      )
  note = _Note(packed)

  def program(arrays: Mapping[Path, Any], rest: list[Any]) -> list[Any]:
    own_args, own_options = given.with_arrays(rest)
    own = replaced(variables, arrays.__getitem__)
    with nn.intercept_methods(note.intercept):
      y = model.apply(own, *own_args, **own_options)
    return [leaf for leaf in jax.tree.leaves(y) if isinstance(leaf, jax.Array)]

  like = {path: jax.ShapeDtypeStruct(shapes[path], np.float32)
          for path in packed}  # fmt: skip
  try:
    known, others = reads_of(program, like, given.arrays)
  except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
    reason = 'the network cannot be traced'
    known, decoded = set(), dict.fromkeys(packed, reason)
  else:
    decoded = {path: note.reason(path) for path in packed if path in others}
  for path in decoded:
    if path not in asked and path[-1] == 'kernel':
      name = '/'.join(path)
      raise ValueError(
        f'{name} is read by hand before a layer asks for it, so that its shape '
        f"is not known: load_compressed(forms={{{name!r}: 'dense'}})"
      )
  return _Plan(shapes, known - decoded.keys(), decoded)


def _shapes(
  model: nn.Module, variables: Any, given: Given
) -> dict[Path, tuple[int, ...]]:
  """Shapes that a network asks for, by path; none where it does not say."""

  def of_init(arrays: list[Any]) -> Any:
    args, options = given.with_arrays(arrays)
    rngs = _keys(options.pop('rngs', None))
    for name in ('mutable', 'capture_intermediates'):
      options.pop(name, None)
    return nn.unbox(model.init(rngs, *args, **options))

  def of_apply(arrays: list[Any]) -> Any:
    args, options = given.with_arrays(arrays)
    options |= {'rngs': _keys(options.get('rngs')), 'mutable': True}
    return nn.unbox(model.apply(without(variables), *args, **options)[1])

  for attempt in (of_init, of_apply):
    try:
      found = jax.eval_shape(attempt, given.arrays)
    except Exception:
      continue
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {path_of(keys): leaf.shape for keys, leaf in leaves}
  return {}


def _keys(rngs: Any) -> dict[str, Any]:
  """Keys of a call, and one for parameters."""
  given = rngs if isinstance(rngs, Mapping) else {}
  return {'params': jax.random.key(0), **given}


class _Note:
  """Marks layers that could run from codes, see `reads`."""

  def __init__(self, packed: Mapping[Path, Packed]) -> None:
    self._packed = packed
    self._readers: dict[Path, str] = {}
    self._refusals: dict[Path, str] = {}
    self._inside = False

  def reason(self, path: Path) -> str:
    """Why something else than a layer reads a parameter."""
    reader = self._readers.get(path[1:-1])
    if path in self._refusals:
      return self._refusals[path]
    if reader in {kind.__name__ for kind, _ in _LAYERS}:
      return f'more than its {reader} reads it, or a transformation changes it'
    return f'{reader} reads it' if reader else 'it is read by hand'

  def intercept(
    self,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    if self._inside:
      return call(*args, **kwargs)
    module: Any = context.module
    self._readers.setdefault(module.path, type(module).__name__)
    layer = _LAYERS.get((type(module), context.method_name))
    path = () if layer is None else ('params', *module.path, layer.leaf)
    if layer is None or path not in self._packed:
      return call(*args, **kwargs)
    (inputs,) = (*args, *kwargs.values())
    bias = _bias(module)
    refusal = layer.refusal(module, self._packed[path].matrix, inputs, bias)
    if refusal:
      self._refusals[path] = refusal
      return call(*args, **kwargs)
    own = {} if bias is None else {'bias': bias}
    plain = module.clone(parent=None, name=None)

    def run(kernel: jax.Array, x: jax.Array, own: dict[str, Any]) -> jax.Array:
      params = {layer.leaf: kernel, **own}
      self._inside = True
      try:
        return plain.apply({'params': params}, x, method=context.method_name)
      finally:
        self._inside = False

    kernel = _variable(module, layer.leaf)
    return layer_call('/'.join(path), run, kernel, inputs, own)


def _run_layer(
  arrays: Mapping[Path, Any],
  products: Products,
  call: Callable[..., Any],
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
  context: nn.module.InterceptorContext,
) -> Any:
  """Runs what reads codes from them; notes what could be joined."""
  module: Any = context.module
  # Transformed by Flax, as by `nn.jit`, a layer is of a subclass outside.
  leaf = next(
    (n for kind, n in _LEAVES.items() if isinstance(module, kind)), ''
  )
  kernel = _variable(module, leaf) if leaf else None
  if kernel is None:
    return call(*args, **kwargs)
  path = (*module.path, leaf)
  if isinstance(kernel, Codes):
    if context.method_name == 'setup':
      # Flax would ask for an array; whoever reads it is a layer, see `_Plan`.
      return None
    layer = _LAYERS.get((type(module), context.method_name))
    if layer is None:
      return call(*args, **kwargs)
    (inputs,) = (*args, *kwargs.values())
    multiply = functools.partial(products.multiply, '/'.join(path), kernel)
    return layer.run(module, kernel.leaf, inputs, _bias(module), multiply)
  if type(module) is nn.Dense and kernel is arrays.get(('params', *path)):
    (inputs,) = (*args, *kwargs.values())
    if not layers.DENSE.refusal(module, kernel, inputs, _bias(module)):
      products.reads.append(('/'.join(path), inputs))
  return call(*args, **kwargs)


def _variable(module: nn.Module, name: str) -> Any:
  return nn.unbox(module.get_variable('params', name))


def _bias(module: Any) -> Any:
  used = getattr(module, 'use_bias', False)
  return _variable(module, 'bias') if used else None


_LAYERS: dict[tuple[type, str], layers.Layer] = {
  (nn.Dense, '__call__'): layers.DENSE,
  (nn.Conv, '__call__'): layers.CONV,
  (nn.Embed, '__call__'): layers.EMBED,
  (nn.Embed, 'attend'): layers.ATTEND,
}
_LEAVES = {kind: layer.leaf for (kind, _), layer in _LAYERS.items()}
