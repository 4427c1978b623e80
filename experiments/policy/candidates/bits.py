"""A network whose layers have bits to choose: options, and what they score.

As `channels`, of bits: one program evaluates any candidate of a space of
`make_bit_space`.

In k-means mode each kernel is a table of its codebooks' results, one a level.
In linear mode kernels, and what layers read, are rounded to grids that lie in a
table by layer and level.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth import coding, quantization, tree
from bandwidth.base import check_known
from bandwidth.quantization.kmeans import Solver
from bandwidth.search.decisions.bit_options import UNQUANTIZED, make_bit_space
from bandwidth.search.decisions.grids import (
  Grids,
  Sample,
  fit_grids,
  grid_integers,
  on_grid,
  sample,
)
from bandwidth.search.problem.space import Space
from experiments.models.geometry import in_plain_layers, layer_shapes

CLIPS = ('max', 'mse')

# Numbers of a kernel, or of a layer's inputs, that a grid is fitted to.
_SAMPLES = 2**13

# Fractions of the range that are tried.
_FRACTIONS = 64


class QuantizedCandidates(NamedTuple):
  """Everything of a network that a search for bits chooses from.

  Codebooks and tables are those of k-means mode, () in linear mode; grids are
  those of linear mode, None in k-means mode.
  """

  model: nn.Module  # made of plain layers in linear mode
  variables: Any  # of the network, `{'params': …, 'batch_stats': …}`
  space: Space  # decisions on weights and, in linear mode, on inputs
  kernels: tuple[str, ...]  # name of the array of each layer
  # By layer and level, None where the kernel stays.
  books: tuple[tuple[quantization.Codebook | None, ...], ...]
  tables: tuple[jax.Array, ...]  # of each layer, kernels float32 [M, …]
  weight_grids: Grids | None  # leaves [layers, M]
  input_grids: Grids | None  # the same of what layers read
  # Of each decision alone, float32 [G, M], above those of its last level: mean
  # squares of what rounding does, by the mean square.
  errors: jax.Array

  def arrays(self) -> dict[str, Any]:
    """Returns the arrays that the methods below read."""
    names = ('variables', 'tables', 'weight_grids', 'input_grids')
    return {name: getattr(self, name) for name in names}

  def chosen(self, data: Mapping[str, Any], candidate: jax.Array) -> Any:
    """Returns the network's variables with the kernels of a candidate.

    Args:
      data: the arrays that `arrays` returns.
      candidate: levels, int32 [G]; traced or not.
    """
    places = {name: i for i, name in enumerate(self.kernels)}

    def put(name: str, leaf: jax.Array) -> jax.Array:
      if name not in places:
        return leaf
      layer = places[name]
      level = candidate[self.space.reads[layer]]
      if data['tables']:
        return data['tables'][layer][level].astype(leaf.dtype)
      return on_grid(leaf, _grid_at(data['weight_grids'], layer, level))

    return tree.map_named(put, data['variables'])

  def rounding(
    self, data: Mapping[str, Any], candidate: jax.Array
  ) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which layers round what they read.

    Args:
      data: the arrays that `arrays` returns.
      candidate: levels, int32 [G]; traced or not.
    """
    layers = [layer.name for layer in self.space.layers]
    if data['input_grids'] is None:
      return contextlib.nullcontext()

    def change(name: str, inputs: jax.Array) -> jax.Array:
      layer = layers.index(name)
      level = candidate[self.space.writes[layer]]
      return on_grid(inputs, _grid_at(data['input_grids'], layer, level))

    return _inputs_through(change, layers)


def make_quantized(
  model: nn.Module,
  variables: Any,
  batches: jax.Array,
  *,
  mode: str = 'linear',
  bits: Iterable[int] = range(2, 9),
  pins: Mapping[str, int] | None = None,
  clip: str = 'mse',
  solver: Solver | None = None,
) -> QuantizedCandidates:
  """Prepares the options of a trained network.

  In linear mode a layer's weights have one step, and what it reads another. A
  grid is symmetric where there are values below 0, with steps of max|x| /
  (2^(b-1) - 1), and otherwise begins at 0, with steps of max|x| / (2^b - 1).
  One bit for both signs means plus or minus half a step. Biases stay as they
  are.

  Args:
    model: of `nn.Conv` and `nn.Dense`.
    variables: parameters and statistics of the trained network.
    batches: preprocessed training images, float32 [B, N, H, W, C], that tell
      the range of what layers read.
    mode: 'linear' or 'kmeans'; see `make_bit_space`.
    bits: the numbers of bits to choose among.
    pins: bits of decisions that are made already, by name of the decision.
    clip: range of a grid. 'max': that of the weights, or of all batches. 'mse':
      the fraction of it whose squared error is least, for each number of bits.
      HAQ cuts off what minimizes a divergence, below 5 bits.
    solver: of the codebooks; None: `quantization.lloyd()`, which runs until
      nothing moves, and is quick as weights lie on a line. HAQ's searches stop
      after 3 iterations. Weights that are 0 stay so.

  Raises:
    ValueError: see `make_bit_space` and `layer_shapes`; the clip is unknown; a
      weight, or what a layer reads, is not finite.
  """
  check_known('clip', clip, CLIPS)
  space = make_bit_space(
    layer_shapes(model, batches[0, :1]), mode=mode, bits=bits, pins=pins
  )
  kernels = tuple(f'params/{layer.name}/kernel' for layer in space.layers)
  leaves = dict(tree.named_leaves(variables))
  arrays = [np.asarray(leaves[name], np.float32) for name in kernels]
  if mode == 'linear':
    model = in_plain_layers(model)
  common = QuantizedCandidates(
    model, variables, space, kernels, (), (), None, None, jnp.zeros(0)
  )
  if mode == 'kmeans':
    return _with_codebooks(common, arrays, solver)
  fractions = np.ones(1)
  if clip == 'mse':
    fractions = np.arange(_FRACTIONS, 0, -1) / _FRACTIONS
  return _with_grids(common, arrays, batches, fractions)


def _with_codebooks(
  common: QuantizedCandidates,
  arrays: Sequence[np.ndarray],
  solver: Solver | None,
) -> QuantizedCandidates:
  books, tables, errors = [], [], []
  widths = common.space.widths()
  for reads, kernel in zip(common.space.reads, arrays, strict=True):
    fitted: dict[int, quantization.Codebook | None] = {
      bits: _codebook(kernel, bits, solver) for bits in widths[reads].tolist()
    }
    own = tuple(fitted[bits] for bits in widths[reads].tolist())
    table = np.stack([kernel if b is None else b.decode() for b in own])
    books.append(own)
    tables.append(jnp.asarray(table))
    errors.append(_relative_errors(table, kernel))
  return common._replace(
    books=tuple(books),
    tables=tuple(tables),
    errors=_above_last(jnp.asarray(np.array(errors), jnp.float32)),
  )


def _codebook(
  kernel: np.ndarray, bits: int, solver: Solver | None
) -> quantization.Codebook | None:
  if bits == UNQUANTIZED:
    return None
  sharing = quantization.Sharing(
    entries=2**bits, reserve_zero=bool((kernel == 0).any())
  )
  return quantization.fit_codebook(kernel, sharing, solver=solver)


def _relative_errors(table: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  lost = (table - kernel[None]).reshape(len(table), -1)
  whole = np.square(kernel, dtype=np.float64).sum()
  return np.square(lost, dtype=np.float64).sum(1) / max(whole, 1e-30)


def _above_last(errors: jax.Array) -> jax.Array:
  return jnp.maximum(errors - errors[:, -1:], 0.0)


def input_samples(
  model: nn.Module, variables: Any, batches: jax.Array, layers: Sequence[str]
) -> Sample:
  """Returns what layers read, in evaluation mode.

  Args:
    model: the network, made of plain layers.
    variables: its parameters and statistics.
    batches: preprocessed images, float32 [B, N, H, W, C].
    layers: paths of the modules, in the order of the result.

  Returns:
    Leaves [layers, …].
  """
  count = -(-_SAMPLES // batches.shape[0])

  def of_batch(variables: Any, images: jax.Array) -> Sample:
    found: dict[str, Sample] = {}

    def note(name: str, inputs: jax.Array) -> jax.Array:
      found[name] = sample(inputs, count)
      return inputs

    with _inputs_through(note, layers):
      model.apply(variables, images)
    return _stacked([found[name] for name in layers])

  @jax.jit
  def of_all(variables: Any, batches: jax.Array) -> Sample:
    each = lax.map(lambda images: of_batch(variables, images), batches)
    values = jnp.moveaxis(each.values, 0, 1).reshape(len(layers), -1)
    return Sample(values, each.least.min(0), each.greatest.max(0))

  return of_all(variables, batches)


def _stacked(rows: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def _with_grids(
  common: QuantizedCandidates,
  arrays: Sequence[np.ndarray],
  batches: jax.Array,
  fractions: np.ndarray,
) -> QuantizedCandidates:
  space, widths = common.space, common.space.widths()
  for name, kernel in zip(common.kernels, arrays, strict=True):
    if not np.isfinite(kernel).all():
      raise ValueError(f'{name}: weights must be finite')
  weights = _stacked([sample(jnp.asarray(x), _SAMPLES) for x in arrays])
  inputs = input_samples(
    common.model,
    common.variables,
    batches,
    [layer.name for layer in space.layers],
  )
  if not np.isfinite([inputs.least, inputs.greatest]).all():
    raise ValueError('batches: not all that layers read is finite')
  reads, writes = np.array(space.reads), np.array(space.writes)
  both = np.ones(len(arrays), bool)
  weight_grids, of_weights = fit_grids(
    weights, widths[reads], signed=both, fractions=fractions
  )
  input_grids, of_inputs = fit_grids(
    inputs,
    widths[writes],
    signed=np.asarray(inputs.least) < 0,
    fractions=fractions,
  )
  errors = jnp.zeros(widths.shape).at[reads].set(of_weights)
  errors = errors.at[writes].set(of_inputs)
  return common._replace(
    weight_grids=weight_grids,
    input_grids=input_grids,
    errors=_above_last(errors),
  )


def _inputs_through(
  change: Callable[[str, jax.Array], jax.Array], layers: Sequence[str]
) -> Any:
  """A context in which what layers read is changed, by path of the module."""

  def intercept(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    name = '/'.join(context.module.path)
    if context.method_name != '__call__' or name not in layers:
      return call(*args, **kwargs)
    if args:
      return call(change(name, args[0]), *args[1:], **kwargs)
    return call(**{**kwargs, 'inputs': change(name, kwargs['inputs'])})

  return nn.intercept_methods(intercept)


def _grid_at(grids: Grids, layer: int, level: Any) -> Grids:
  return Grids(*(leaf[layer, level] for leaf in grids))


def export_tensors(
  quantized: QuantizedCandidates, candidate: np.ndarray
) -> dict[str, coding.Tensor]:
  """Returns what a file holds of the kernels of a candidate.

  They decode to what was evaluated, bit for bit. Kernels that stay float32 are
  left out.

  Args:
    quantized: the network and its options.
    candidate: level of each decision, int32 [G].

  Returns:
    Tensors by name of the parameter, 'Conv_0/kernel', as
    `compression.files.write_file` takes them.
  """
  levels = np.asarray(candidate)[list(quantized.space.reads)].tolist()
  leaves = dict(tree.named_leaves(quantized.variables))
  tensors: dict[str, coding.Tensor] = {}
  for layer, (name, level) in enumerate(
    zip(quantized.kernels, levels, strict=True)
  ):
    if quantized.weight_grids is None:
      book = quantized.books[layer][level]
      tensor = None if book is None else coding.as_tensor(book)
    else:
      grid = _grid_at(quantized.weight_grids, layer, level)
      tensor = _uniform_tensor(leaves[name], grid)
    if tensor is not None:
      tensors[name.removeprefix('params/')] = tensor
  return tensors


def _uniform_tensor(
  kernel: jax.Array, grid: Grids
) -> coding.UniformTensor | None:
  if not float(grid.step) > 0:
    return None
  # With an offset, odd multiples of half a step.
  halves = 1 + (float(grid.offset) > 0)
  whole = halves * (grid_integers(kernel, grid) + grid.offset)
  return coding.UniformTensor(
    np.asarray(whole).astype(np.int32), np.asarray(grid.step / halves)
  )
