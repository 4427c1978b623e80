"""What a config says of a search, found out before any network is trained."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from bandwidth.base import check_type
from bandwidth.search.problem.budget import check_budget
from bandwidth.search.problem.interface import Problem, Searcher
from bandwidth.search.searchers import check_searcher, make_searcher
from experiments.compression.files import as_variables, check_shapes
from experiments.policy.candidates.scores import check_score
from experiments.policy.kinds import kind_of
from experiments.policy.kinds.kind import Kind, PricedSpace, named
from experiments.training.tasks import Task, make_task

_POSITIVE = (
  *('evaluations', 'seeds', 'images', 'finalists'),
  *('refit.batches', 'refit.batch_size', 'refit.points'),
)
_NOT_NEGATIVE = ('statistics', 'refit.ridge')


class SearchPlan(NamedTuple):
  """A search without weights."""

  config: Mapping[str, Any]  # resolved
  task: Task  # network and data
  variables: Any  # of the network, shapes and dtypes
  kind: Kind  # of its decisions


def make_plan(config: Mapping[str, Any]) -> SearchPlan:
  """Reads the data, finds the decisions, and checks all that it can.

  Args:
    config: all of its fields, as `config.resolve` returns them.

  Raises:
    ValueError: a field of `search` can't be used; the network can't be shrunk,
      or not as far as the budget asks.
  """
  given = config['search']
  _check_numbers(given)
  _check_held_out(config)
  check_score(given['score'])
  kind = kind_of(named(given, 'decisions')['name'])
  task = make_task(config)
  variables = jax.eval_shape(task.model.init, jax.random.key(0), task.example)
  priced = kind.price(config, task, variables)
  _check_training_images(given, len(task.train))
  check_searcher(named(given, 'searcher')['name'])
  if priced is not None:
    searcher_of(given, Problem(priced.space, lambda *_: jnp.float32(0)))
    budget_of(given, priced)
  return SearchPlan(config, task, variables, kind)


def budget_of(given: Mapping[str, Any], priced: PricedSpace) -> int:
  """Returns the budget in units.

  Raises:
    ValueError: even the smallest network costs more.
  """
  amount = given['budget'] * priced.whole
  try:
    return check_budget(priced.space, priced.costs, amount)
  except ValueError as error:
    raise ValueError(
      f'search.budget={given["budget"]}: {error} of {priced.whole:g}'
    ) from None


def searcher_of(given: Mapping[str, Any], problem: Problem) -> Searcher:
  """Makes the searcher that the group `search` of a config names.

  Raises:
    ValueError: its name or an option is unknown, or out of range.
  """
  options = named(given, 'searcher')
  name = options.pop('name')
  return make_searcher(
    name, problem, evaluations=given['evaluations'], **options
  )


def network_variables(
  plan: SearchPlan, arrays: Mapping[str, np.ndarray], source: str
) -> Any:
  """Returns the variables of a trained network.

  Args:
    plan: of the search, whose network it must be.
    arrays: all arrays of a file, by name.
    source: where they are from, for error messages.

  Raises:
    ValueError: they are those of another network.
  """
  params, model_state = as_variables(arrays, source)
  variables = {'params': params, **model_state}
  check_shapes(variables, plan.variables, source)
  like = dict(tree.named_leaves(plan.variables))
  return tree.map_named(
    lambda name, leaf: jnp.asarray(leaf, like[name].dtype), variables
  )


def _check_numbers(given: Mapping[str, Any]) -> None:
  flat = {**given, **{f'refit.{k}': v for k, v in given['refit'].items()}}
  for point in given['frontier']:
    check_type('search.frontier', point, float)
  for field in _POSITIVE:
    if flat[field] < 1:
      raise ValueError(f'search.{field}={flat[field]} is not positive')
  for field in _NOT_NEGATIVE:
    if not 0 <= flat[field] < np.inf:
      raise ValueError(
        f'search.{field}={flat[field]} is negative or not finite'
      )
  for field in ('budget', 'frontier'):
    for value in np.atleast_1d(given[field]).tolist():
      if not 0 < value <= 1:
        raise ValueError(f'search.{field}={value} is not in (0, 1]')


def _check_held_out(config: Mapping[str, Any]) -> None:
  images, held = config['search']['images'], config['dataset']['validation']
  if held <= images:
    raise ValueError(
      f'search.images={images} leaves none of the dataset.validation={held} '
      'examples that are held out to choose among the best'
    )


def _check_training_images(given: Mapping[str, Any], count: int) -> None:
  refit = given['refit']
  wanted = refit['batches'] * refit['batch_size'] + given['statistics']
  if wanted > count:
    raise ValueError(
      f'search.refit.batches={refit["batches"]} of batch_size='
      f'{refit["batch_size"]} and search.statistics={given["statistics"]} are '
      f'more than the {count} training examples'
    )
