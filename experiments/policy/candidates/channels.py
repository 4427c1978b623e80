"""A network as a search sees it: decisions, and options for each of them."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import pruning, tree
from bandwidth.search.decisions import options
from bandwidth.search.problem.space import Space, make_space
from experiments.models.geometry import layer_shapes
from experiments.models.prunable import Prunable
from experiments.policy.candidates.calibration import input_moments


class Refit(NamedTuple):
  """How the layers that read fewer channels are refitted."""

  enabled: bool = True  # otherwise their remaining weights stay
  ridge: float = 1e-4  # of the least squares, see `options.factorize`
  intercept: bool = True  # whether a constant is fitted too
  points: int = 10  # of each convolution in each batch


_REFIT = Refit()


class Candidates(NamedTuple):
  """Everything of a network that a search chooses from."""

  model: Any  # the network
  variables: Any  # of the network, `{'params': …, 'batch_stats': …}`
  space: Space  # of decisions
  orders: tuple[np.ndarray, ...]  # channels by importance, of each decision
  # Kernels that read a decision, with its index.
  readers: tuple[tuple[int, options.Reader], ...]
  tables: tuple[options.Option, ...]  # of each reader

  @property
  def errors(self) -> jax.Array:
    """What each decision alone does to its readers: float32 [G, M]."""
    return options.errors_by_level(self.readers, self.tables, self.space)

  def arrays(self) -> dict[str, Any]:
    """Returns the arrays that `chosen` reads."""
    return {'variables': self.variables, 'tables': self.tables}

  def chosen(self, data: Mapping[str, Any], candidate: jax.Array) -> Any:
    """Returns the variables with the options of a candidate, int32 [G]."""
    return options.with_options(
      data['variables'], self.readers, data['tables'], candidate
    )

  def rounding(
    self, data: Mapping[str, Any], candidate: jax.Array
  ) -> contextlib.AbstractContextManager[None]:
    """Returns a context that changes nothing: inputs are not rounded."""
    del data, candidate
    return contextlib.nullcontext()


def network_space(
  model: Any,
  variables: Any,
  example: jax.Array | jax.ShapeDtypeStruct,
  *,
  layers: Sequence[pruning.Layer] | None = None,
  divisor: int = 8,
  smallest: float = 0.2,
  most_levels: int = 64,
) -> Space:
  """Finds the decisions of a network; no weights are needed.

  Args:
    model: a network that is `Prunable`.
    variables: its parameters and statistics, arrays or abstract shapes.
    example: an input, batch of one; only shape and dtype matter.
    layers: who reads whose channels; None: `model.layers()`.
    divisor: channels are kept in multiples of it.
    smallest: the fraction of channels that each group keeps at least.
    most_levels: the most levels that a decision may have, see `make_space`.

  Raises:
    ValueError: see `make_space`; the network does not say which layers read
      whose channels, or none of them may be removed.
  """
  _check_prunable(model)
  layers = model.layers() if layers is None else layers
  space = make_space(
    layer_shapes(model, example),
    pruning.channel_groups(variables, layers),
    divisor=divisor,
    smallest=smallest,
    most_levels=most_levels,
  )
  if not space.decisions:
    raise ValueError(
      f'model: {type(model).__name__} has no channels that may be removed'
    )
  return space


def _check_prunable(model: Any) -> None:
  if not isinstance(model, Prunable):
    raise ValueError(
      f'model: {type(model).__name__} has no layers() and with_channels(), so '
      'it cannot be shrunk'
    )


def make_candidates(
  model: Any,
  variables: Any,
  batches: jax.Array,
  *,
  refit: Refit = _REFIT,
  key: jax.Array,
  layers: Sequence[pruning.Layer] | None = None,
  **levels: Any,
) -> Candidates:
  """Prepares the options of a trained network.

  Args:
    model: a network that is `Prunable`.
    variables: parameters and statistics of the trained network.
    batches: preprocessed training images, float32 [B, N, H, W, C].
    refit: how layers are fitted to the channels that stay.
    key: typed key of the points that are looked at.
    layers: who reads whose channels; None: `model.layers()`.
    **levels: `divisor`, `smallest` and `most_levels` of `network_space`.

  Raises:
    ValueError: see `network_space`; a layer cannot be refitted, or what it
      reads is not finite, or so alike that rounding is all that differs.
  """
  space = network_space(
    model, variables, batches[0, :1], layers=layers, **levels
  )
  shifts = shift_arrays(variables, model.layers() if layers is None else layers)
  readers = tuple(options.find_readers(space.groups, shifts))
  orders = tuple(options.channel_order(variables, g) for g in space.groups)
  inputs = input_moments(
    model,
    variables,
    batches,
    [module_of(reader.kernel) for _, reader in readers],
    points=refit.points,
    key=key,
  )
  leaves = dict(tree.named_leaves(variables))

  def table(decision: int, reader: options.Reader) -> options.Option:
    group = space.groups[decision]
    rows = options.row_order(variables, group, reader.part, orders[decision])
    return _table(
      jnp.asarray(leaves[reader.kernel]),
      jnp.asarray(rows),
      inputs[module_of(reader.kernel)],
      levels=space.levels[decision],
      all_channels=group.channels,
      refit=refit._replace(
        intercept=refit.intercept and reader.shift is not None
      ),
    )

  tables = tuple(table(*pair) for pair in readers)
  _check_finite(readers, tables)
  return Candidates(model, variables, space, orders, readers, tables)


def _check_finite(
  readers: Sequence[tuple[int, options.Reader]],
  tables: Sequence[options.Option],
) -> None:
  for (_, reader), table in zip(readers, tables, strict=True):
    if not np.isfinite(table.error).all():
      raise ValueError(
        f'{reader.kernel}: least squares fail on what it reads; a larger ridge '
        'may help'
      )


# Layers of one shape share a program.
@functools.partial(jax.jit, static_argnames=('levels', 'all_channels', 'refit'))
def _table(
  kernel: jax.Array,
  rows: jax.Array,
  inputs: options.Moments,
  *,
  levels: tuple[int, ...],
  all_channels: int,
  refit: Refit,
) -> options.Option:
  """A reader at all levels of its decision."""
  factor = options.factorize(
    kernel, rows, inputs, ridge=refit.ridge, intercept=refit.intercept
  )
  return options.option_table(
    factor,
    np.array(levels),
    kernel.shape,
    all_channels=all_channels,
    refit=refit.enabled,
  )


def shift_arrays(
  variables: Any, layers: Sequence[pruning.Layer]
) -> dict[str, tuple[str, float]]:
  """Returns, by kernel, the array that takes a constant, and its sign.

  The layer's bias or, without one, the mean of the batch normalization that
  reads it.
  """
  names = set(tree.names(variables))
  norms = {x.input: x.name for x in layers if isinstance(x, pruning.Norm)}
  found = {}
  for layer in layers:
    kernel, bias = f'params/{layer.name}/kernel', f'params/{layer.name}/bias'
    mean = f'batch_stats/{norms.get(layer.name)}/mean'
    if bias in names:
      found[kernel] = (bias, 1.0)
    elif mean in names:
      found[kernel] = (mean, -1.0)
  return found


def masked(
  candidates: Candidates, candidate: Any, statistics: jax.Array | None = None
) -> Any:
  """Returns the whole network's variables with the options of a candidate.

  Args:
    candidates: the network and its options.
    candidate: level of each decision, int32 [G].
    statistics: images, see `with_statistics`; None: batch normalization keeps
      its own statistics.
  """

  @jax.jit
  def put(
    variables: Any, tables: Any, candidate: jax.Array, images: Any
  ) -> Any:
    chosen = options.with_options(
      variables, candidates.readers, tables, candidate
    )
    if images is None:
      return chosen
    return with_statistics(candidates.model, chosen, images)

  levels = jnp.asarray(candidate, jnp.int32)
  return put(candidates.variables, candidates.tables, levels, statistics)


def with_statistics(model: nn.Module, variables: Any, images: jax.Array) -> Any:
  """Replaces the statistics of batch normalization by those of a batch.

  Li et al., EagleEye, 2020 (arXiv 2007.02491): statistics of the whole network
  misjudge a candidate.

  Args:
    model: the network, with `norm_momentum` where it normalizes.
    variables: its parameters and statistics.
    images: preprocessed, float32 [N, H, W, C].
  """
  if 'batch_stats' not in variables:
    return variables
  # Without momentum what is kept is what was seen last.
  fresh = model.clone(norm_momentum=0.0)
  _, state = fresh.apply(variables, images, train=True, mutable=['batch_stats'])
  return {**variables, **state}


def export(
  candidates: Candidates, candidate: np.ndarray, variables: Any = None
) -> tuple[Any, Any]:
  """Returns the smaller network of a candidate, and its variables.

  It computes what the masked one does.

  Args:
    candidates: the network and its options.
    candidate: level of each decision, int32 [G].
    variables: of the masked network, see `masked`, which None stands for.
  """
  space = candidates.space
  if variables is None:
    variables = masked(candidates, candidate)
  kept = space.kept(candidate)
  keep = {
    name: kept_channels(candidates, candidate, g) for g, name in enumerate(kept)
  }
  small = pruning.remove_channels(variables, space.groups, keep)
  return candidates.model.with_channels(kept), small


def kept_channels(
  candidates: Candidates, candidate: np.ndarray, decision: int
) -> np.ndarray:
  """Returns the channels that a decision keeps, int, ascending."""
  count = candidates.space.levels[decision][candidate[decision]]
  return np.sort(candidates.orders[decision][:count])


def module_of(kernel: str) -> str:
  """Returns the path of the module that has a kernel, `params/…/kernel`."""
  return kernel.removeprefix('params/').removesuffix('/kernel')
