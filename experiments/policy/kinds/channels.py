"""Decisions on how many channels each group of layers keeps.

Channels that residual connections add are 'fixed', or one decision for each
'group' of them, where the network knows both (`decisions.residual`).
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bandwidth.search.problem.cost import (
  COSTS,
  CostModel,
  cost_model,
  exact_cost,
  tabulate,
)
from bandwidth.search.problem.space import Space
from experiments.policy.candidates.channels import (
  Candidates,
  export,
  kept_channels,
  make_candidates,
  masked,
  network_space,
)
from experiments.policy.kinds.kind import (
  Kind,
  Network,
  PricedSpace,
  SearchSubject,
  arrays_of,
  named,
  options_of,
  refit_of,
)
from experiments.training.tasks import Task

LEVELS = ('divisor', 'smallest', 'most_levels')
"""Fields of `search` that are arguments of `network_space`."""


class Options(NamedTuple):
  """Options of the decisions."""

  residual: str = 'fixed'  # or 'group', see above


def _space_options(given: Mapping[str, Any], model: Any) -> dict[str, Any]:
  """Arguments of `network_space` that the config chooses.

  Raises:
    ValueError: a field is unknown, or one that the network has no use for.
  """
  residual = options_of(given, Options)['residual']
  levels = {name: given[name] for name in LEVELS}
  if residual == Options().residual:
    return levels
  layers = getattr(model, 'layers', None)
  if layers is None or 'residual' not in inspect.signature(layers).parameters:
    raise ValueError(
      f'search.decisions.residual={residual!r}: channels of '
      f'{type(model).__name__} are not added in groups that may be removed'
    )
  return {**levels, 'layers': layers(residual=residual)}


def _price(
  config: Mapping[str, Any], task: Task, variables: Any
) -> PricedSpace:
  given = config['search']
  levels = _space_options(given, task.model)
  model = cost_model(**named(given, 'cost'))
  space = network_space(task.model, variables, task.example, **levels)
  return price_space(space, model)


def price_space(space: Space, model: CostModel) -> PricedSpace:
  """Returns what the decisions of a space cost by a model."""
  return PricedSpace(
    space=space,
    costs=tabulate(space, model),
    whole=exact_cost(space, model, space.full()),
    exact=lambda candidate: exact_cost(space, model, candidate),
  )


def _make(
  config: Mapping[str, Any],
  task: Task,
  variables: Any,
  batches: jax.Array,
  key: jax.Array,
) -> SearchSubject:
  given = config['search']
  candidates = make_candidates(
    task.model,
    variables,
    batches,
    refit=refit_of(given),
    key=key,
    **_space_options(given, task.model),
  )
  return subject_of(candidates, _price(config, task, variables))


def subject_of(candidates: Candidates, priced: PricedSpace) -> SearchSubject:
  """Returns a network whose channels are decided.

  Args:
    candidates: its options.
    priced: its decisions and what they cost.
  """

  def network(candidate: np.ndarray, images: jax.Array | None) -> Network:
    whole = masked(candidates, candidate, images)
    model, small = export(candidates, candidate, whole)
    return Network(model, arrays_of(small), {})

  return SearchSubject(
    priced=priced,
    candidates=candidates,
    errors=candidates.errors,
    variables=functools.partial(masked, candidates),
    network=network,
    policy=functools.partial(_policy, candidates),
  )


def _policy(
  candidates: Candidates, candidate: np.ndarray
) -> list[dict[str, Any]]:
  rows = []
  for decision, group in enumerate(candidates.space.groups):
    kept = kept_channels(candidates, candidate, decision)
    rows.append(
      {
        'name': group.name,
        'fraction': len(kept) / group.channels,
        'label': f'{len(kept)}',
        'channels': group.channels,
        'kept': len(kept),
        'channel_indices': kept.tolist(),
      }
    )
  return rows


KIND = Kind(_price, _make, 'channels kept', Options, COSTS)
