"""Decisions on how many channels each group of layers keeps.

Channels that residual connections add are 'fixed', or one decision for each
'group' of them, where the network knows both (`decisions.residual`).
"""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bandwidth.search.problem.cost import (
  CostModel,
  cost_model,
  exact_cost,
  tabulate,
)
from bandwidth.search.problem.space import Space
from experiments.policy.candidates.channels import (
  Candidates,
  Refit,
  export,
  kept_channels,
  make_candidates,
  masked,
  network_space,
)
from experiments.policy.candidates.scores import (
  make_measure,
  make_objective,
  score_data,
)
from experiments.policy.kinds.kind import (
  Kind,
  Network,
  Priced,
  Subject,
  arrays_of,
  named,
  options_of,
)
from experiments.training.tasks import Task

LEVELS = ('divisor', 'smallest', 'most_levels')
"""Fields of `search` that are arguments of `candidates.network_space`."""

_KNOWN = {'residual': 'fixed'}


def _space_options(given: Mapping[str, Any], model: Any) -> dict[str, Any]:
  """Arguments of `candidates.network_space` that the config chooses.

  Raises:
    ValueError: a field is unknown, or one that the network has no use for.
  """
  residual = options_of(given, 'decisions', _KNOWN)['residual']
  levels = {name: given[name] for name in LEVELS}
  if residual == _KNOWN['residual']:
    return levels
  layers = getattr(model, 'layers', None)
  if layers is None or 'residual' not in inspect.signature(layers).parameters:
    raise ValueError(
      f'search.decisions.residual={residual!r}: channels of '
      f'{type(model).__name__} are not added in groups that may be removed'
    )
  return {**levels, 'layers': layers(residual=residual)}


def _price(config: Mapping[str, Any], task: Task, variables: Any) -> Priced:
  given = config['search']
  levels = _space_options(given, task.model)
  model = cost_model(**named(given, 'cost'))
  space = network_space(task.model, variables, task.example, **levels)
  return price_space(space, model)


def price_space(space: Space, model: CostModel) -> Priced:
  """Returns what the decisions of a space cost by a model."""
  return Priced(
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
) -> Subject:
  given = config['search']
  candidates = make_candidates(
    task.model,
    variables,
    batches,
    refit=Refit(**{name: given['refit'][name] for name in Refit._fields}),
    key=key,
    **_space_options(given, task.model),
  )
  priced = _price(config, task, variables)
  return subject_of(candidates, priced, given['score'])


def subject_of(candidates: Candidates, priced: Priced, score: str) -> Subject:
  """Returns a network whose channels are decided.

  Args:
    candidates: its options.
    priced: its decisions.
    score: see `experiments.policy.candidates.scores.make_objective`.
  """

  def network(candidate: np.ndarray, images: jax.Array | None) -> Network:
    whole = masked(candidates, candidate, images)
    model, small = export(candidates, candidate, whole)
    return Network(model, arrays_of(small), {})

  return Subject(
    priced=priced,
    errors=candidates.errors,
    objective=make_objective(candidates, score),
    measure=make_measure(candidates),
    arrays=lambda examples: score_data(candidates, examples),
    variables=lambda candidate, images: masked(candidates, candidate, images),
    network=network,
    policy=lambda candidate: _policy(candidates, candidate),
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


KIND = Kind(_price, _make, 'channels kept')
