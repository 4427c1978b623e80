"""A network whose kernels choose channels and precision together.

As `channels`, with choices of `decisions.joint`: a kernel is refitted to the
channels that stay and then rounded. One program evaluates any candidate, and
`scores` works on `.candidates`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import coding, pruning, tree
from bandwidth.base import check_known
from bandwidth.search.decisions import joint as joint_lib
from bandwidth.search.decisions import joint_space, options
from bandwidth.search.decisions.joint import KernelChoice, Rounding
from bandwidth.search.problem.space import FIXED, Space
from experiments.compression.files import named_arrays
from experiments.policy.candidates.calibration import input_moments
from experiments.policy.candidates.channels import (
  Candidates,
  Refit,
  masked,
  module_of,
  network_space,
  shift_arrays,
)

_MOST_WIDTHS = 16
"""Numbers of channels of a kernel, each of which is tried with each step."""

MOST_BITS = 12
"""Target of a weight that is rounded: codes of more are not told apart."""

_REFIT = Refit()


class JointCandidates(NamedTuple):
  """Everything of a network that a joint search chooses from.

  Of the candidates, the space is `space`, and each kernel has one reader and
  one table.
  """

  candidates: Candidates
  choices: tuple[tuple[KernelChoice, ...], ...]  # of each decision by level
  groups: tuple[pruning.ChannelGroup, ...]  # channels that may be removed

  @property
  def space(self) -> Space:
    """Of the decisions, one for each kernel."""
    return self.candidates.space

  @property
  def errors(self) -> jax.Array:
    """Errors of layers above those of their last levels: float32 [G, M]."""
    return self.candidates.errors


class _Source(NamedTuple):
  """A kernel before its choices are known."""

  layer: int  # its place among the layers
  reader: options.Reader  # the kernel, and what takes a constant
  order: np.ndarray  # channels by importance, int [inputs]
  # Of the kernel's matrix by importance, int32 [n]; None: all channels stay.
  rows: np.ndarray | None
  floats: int  # see `joint_space.JointGroup`


def make_joint(
  model: Any,
  variables: Any,
  batches: jax.Array,
  *,
  divisor: int = 8,
  smallest: float = 0.2,
  bits: Sequence[float] = (0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6),
  most_levels: int = 48,
  refit: Refit = _REFIT,
  key: jax.Array,
  kept: Literal['all'] | Mapping[str, int] | None = None,
  compensate: bool = True,
) -> JointCandidates:
  """Prepares the choices of a trained network.

  Args:
    model: a network that is `Prunable`.
    variables: parameters and statistics of the trained network.
    batches: preprocessed training images, float32 [B, N, H, W, C].
    divisor: channels are kept in multiples of it, see `make_space`.
    smallest: the fraction of channels that each kernel keeps at least.
    bits: about how many a weight takes, ascending; 32: it is not rounded.
      One alone leaves only channels to choose.
    most_levels: the most levels that a decision may have.
    refit: how kernels are fitted to the channels that stay.
    key: typed key of the points that are looked at.
    kept: channels of each kernel that are chosen already, by name of the
      kernel; kernels that it lacks keep all, and so does every one with 'all'.
      None: they are chosen too.
    compensate: whether later weights make up for the rounding of earlier
      ones, see `joint.Rounding`.

  Raises:
    ValueError: see `network_space`; several kernels read the same channels; a
      layer cannot be refitted, or what it reads is not finite; bits or kept
      channels are none that can be.
  """
  check_rates(bits)
  channels = network_space(
    model,
    variables,
    batches[0, :1],
    divisor=divisor,
    smallest=smallest,
    most_levels=_MOST_WIDTHS,
  )
  sources = _sources(channels, variables, model.layers())
  names = [module_of(source.reader.kernel) for source in sources]
  inputs = input_moments(
    model, variables, batches, names, points=refit.points, key=key
  )
  leaves = dict(tree.named_leaves(variables))
  rates = [bits[i] for i in (0, len(bits) // 2, -1)]
  choose = functools.partial(
    _choose,
    channels,
    bits=bits,
    rates=rates,
    most_levels=most_levels,
    refit=refit,
    rounding=Rounding(refit=refit.enabled, compensate=compensate),
  )
  widths = _widths(channels, sources, kept)
  choices, tables = zip(
    *(
      choose(
        source, jnp.asarray(leaves[source.reader.kernel]), inputs[name], own
      )
      for source, name, own in zip(sources, names, widths, strict=True)
    ),
    strict=True,
  )
  return _joined(model, variables, channels, sources, choices, tables, rates[1])


def _joined(
  model: Any,
  variables: Any,
  channels: Space,
  sources: Sequence[_Source],
  choices: tuple[tuple[KernelChoice, ...], ...],
  tables: tuple[options.Option, ...],
  rate: float,
) -> JointCandidates:
  leaves = dict(tree.named_leaves(variables))
  space = joint_space.make_joint_space(
    channels,
    choices,
    floats=_floats(channels, leaves),
    fixed=_fixed(channels, sources, leaves),
    rate=rate,
  )
  candidates = Candidates(
    model,
    variables,
    space,
    orders=tuple(source.order for source in sources),
    readers=tuple((i, source.reader) for i, source in enumerate(sources)),
    tables=tables,
  )
  return JointCandidates(candidates, choices, channels.groups)


def _choose(
  channels: Space,
  source: _Source,
  kernel: jax.Array,
  inputs: options.Moments,
  channels_kept: Sequence[int],
  *,
  bits: Sequence[float],
  rates: Sequence[float],
  most_levels: int,
  refit: Refit,
  rounding: Rounding,
) -> tuple[tuple[KernelChoice, ...], options.Option]:
  """Levels of a kernel, and the kernel at each."""
  prepared, count = _prepare(source, kernel, inputs, refit), len(source.order)
  every = joint_lib.choices_of(
    prepared,
    channels=channels_kept,
    all_channels=count,
    steps=joint_lib.steps_for(np.asarray(kernel), bits),
    rounding=rounding,
  )
  _check_finite(source.reader.kernel, every)
  picked = joint_space.order_choices(
    channels,
    source.layer,
    every,
    floats=source.floats,
    rates=rates,
    most_levels=most_levels,
  )
  table = joint_lib.table_of(
    prepared, picked, kernel.shape, all_channels=count, refit=refit.enabled
  )
  return picked, table


def check_rates(bits: Sequence[float]) -> None:
  """Checks numbers of bits that weights are to take.

  Raises:
    ValueError: there are none, they do not ascend, or one is neither in
      (0, `MOST_BITS`] nor 32.
  """
  values = list(bits)
  if not values or any(
    not 0 < x <= MOST_BITS and x != joint_lib.FLOAT_BITS for x in values
  ):
    raise ValueError(f'bits={values} are not all in (0, {MOST_BITS}], or 32')
  if sorted(set(values)) != values:
    raise ValueError(f'bits={values} do not ascend')


def _sources(
  channels: Space, variables: Any, layers: Sequence[pruning.Layer]
) -> list[_Source]:
  shifts = shift_arrays(variables, layers)
  leaves = dict(tree.named_leaves(variables))
  floats, sources = _floats(channels, leaves), []
  for place in joint_space.kernel_layers(channels):
    layer, group = channels.layers[place], channels.reads[place]
    name = f'params/{layer.name}/kernel'
    part = pruning.ChannelAxis(name=name, axis=-2)
    order, rows, each = np.arange(layer.inputs), None, 0
    if group != FIXED:
      found = channels.groups[group]
      (part,) = (x for x in found.inputs if x.name == name)
      order = options.channel_order(variables, found)
      rows = options.row_order(variables, found, part, order)
      each = floats[found.name]
    shift = shifts.get(name, (None, 1.0))
    reader = options.Reader(name, part, *shift)
    sources.append(_Source(place, reader, order, rows, each))
  return sources


def _prepare(
  source: _Source, kernel: jax.Array, inputs: options.Moments, refit: Refit
) -> joint_lib.Kernel:
  intercept = refit.intercept and source.reader.shift is not None
  rows = source.rows
  if rows is None:
    # Those that matter most are rounded first, while others can make up.
    rows = np.argsort(-np.diagonal(inputs.gram), kind='stable')
  factor = options.factorize(
    kernel, jnp.asarray(rows), inputs, ridge=refit.ridge, intercept=intercept
  )
  return joint_lib.make_kernel(factor, inputs)


def _check_finite(name: str, choices: Sequence[KernelChoice]) -> None:
  if not np.isfinite([choice.error for choice in choices]).all():
    raise ValueError(
      f'{name}: least squares fail on what it reads; a larger ridge may help'
    )


def _widths(
  channels: Space,
  sources: Sequence[_Source],
  kept: Literal['all'] | Mapping[str, int] | None,
) -> list[tuple[int, ...]]:
  """The channels that each kernel may keep, ascending."""
  given: dict[str, int] = {}
  if isinstance(kept, Mapping):
    given = dict(kept)
  elif kept not in (None, 'all'):
    raise ValueError(f'kept={kept!r} is neither channels by kernel nor all')
  known = [source.reader.kernel for source in sources]
  widths = []
  for name in given:
    check_known('kept', name, known)
  for source, name in zip(sources, known, strict=True):
    inputs = len(source.order)
    group = channels.reads[source.layer]
    if group != FIXED and kept is None:
      widths.append(channels.levels[group])
      continue
    count = int(given.get(name, inputs))
    if not (1 if group != FIXED else inputs) <= count <= inputs:
      raise ValueError(
        f'kept: {name}={given[name]} is not in [1, {inputs}]'
        if group != FIXED
        else f'kept: {name}={given[name]}, but nobody may remove its channels'
      )
    widths.append((count,))
  return widths


def _floats(channels: Space, leaves: Mapping[str, Any]) -> dict[str, int]:
  """Numbers that go with a channel and stay float32, by name of the group."""
  kernels = {f'params/{layer.name}/kernel' for layer in _kernels(channels)}
  found = {}
  for group in channels.groups:
    parts = {part.name for part in (*group.outputs, *group.statistics)}
    total = sum(np.size(leaves[name]) for name in parts - kernels)
    found[group.name] = total // group.channels
  return found


def _fixed(
  channels: Space, sources: Sequence[_Source], leaves: Mapping[str, Any]
) -> int:
  """Numbers beside kernels that stay in any case."""
  kernels = {source.reader.kernel for source in sources}
  rest = sum(np.size(x) for name, x in leaves.items() if name not in kernels)
  return rest - sum(s.floats * len(s.order) for s in sources)


def _kernels(channels: Space) -> list[Any]:
  return [channels.layers[i] for i in joint_space.kernel_layers(channels)]


def chosen(
  joint: JointCandidates, candidate: Sequence[int] | np.ndarray
) -> list[KernelChoice]:
  """Returns the choice of each decision.

  Raises:
    ValueError: see `Space.kept`.
  """
  joint.space.kept(candidate)
  levels = np.asarray(candidate).tolist()
  return [own[i] for own, i in zip(joint.choices, levels, strict=True)]


def export_joint(
  joint: JointCandidates,
  candidate: np.ndarray,
  statistics: jax.Array | None = None,
) -> tuple[Any, dict[str, np.ndarray], dict[str, coding.Tensor]]:
  """Returns the smaller network of a candidate, and what its file holds.

  It computes what the masked one does, and kernels decode to what was
  evaluated, bit for bit.

  Args:
    joint: the network and its choices.
    candidate: level of each decision, int32 [G].
    statistics: images, see `channels.with_statistics`; None: batch
      normalization keeps its own statistics.

  Returns:
    The smaller network; all its arrays by name; and integers and steps of its
    kernels, named without `params/`, as `files.write_file` takes them.

  Raises:
    ValueError: see `Space.kept`.
  """
  choices = chosen(joint, candidate)
  whole = masked(joint.candidates, candidate, statistics)
  keep = {
    group.source: np.sort(order[: choice.kept])
    for group, order, choice in zip(
      cast(Any, joint.space.groups),
      joint.candidates.orders,
      choices,
      strict=True,
    )
    if group.source is not None
  }
  small = pruning.remove_channels(whole, joint.groups, keep)
  counts = {name: len(channels) for name, channels in keep.items()}
  model_state = {k: v for k, v in small.items() if k != 'params'}
  arrays = named_arrays(small['params'], model_state)
  tensors: dict[str, coding.Tensor] = {}
  readers = joint.candidates.readers
  for (_, reader), choice in zip(readers, choices, strict=True):
    if choice.step > 0:
      step = np.float32(choice.step)
      codes = np.round(arrays[reader.kernel] / step).astype(np.int32)
      name = reader.kernel.removeprefix('params/')
      tensors[name] = coding.UniformTensor(codes, np.asarray(step))
  return joint.candidates.model.with_channels(counts), arrays, tensors


def policy_rows(
  joint: JointCandidates, candidate: np.ndarray
) -> list[dict[str, Any]]:
  """Returns what a candidate makes of each kernel, as data.

  Raises:
    ValueError: see `Space.kept`.
  """
  rows = []
  readers, orders = joint.candidates.readers, joint.candidates.orders
  choices = chosen(joint, candidate)
  for (_, reader), order, choice in zip(readers, orders, choices, strict=True):
    part = joint.space.layers[_layer(joint, len(rows))]
    weights = part.weights * choice.kept / len(order)
    rows.append(
      {
        'kernel': reader.kernel,
        'channels': len(order),
        'kept': choice.kept,
        'step': choice.step,
        'bits_per_weight': choice.bits / weights,
        'density': choice.density,
      }
    )
  return rows


def _layer(joint: JointCandidates, decision: int) -> int:
  return cast(Any, joint.space.groups)[decision].layer
