"""What all kinds of decisions give to a search."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bandwidth import coding
from bandwidth.base import make_named
from bandwidth.search.problem.cost import Costs
from bandwidth.search.problem.space import Space
from experiments.compression.files import named_arrays
from experiments.policy.candidates.channels import Refit
from experiments.policy.candidates.scores import Scorable
from experiments.training.tasks import Task


class PricedSpace(NamedTuple):
  """Decisions, and what they cost in the unit of a cost model."""

  space: Space
  costs: Costs  # of the options of each decision
  whole: float  # that of the network that budgets are fractions of
  exact: Callable[[np.ndarray], float]  # cost of a candidate, int32 [G]


class Network(NamedTuple):
  """A candidate as a network of its own.

  `tensors` are the parameters that a file holds in another form than float32,
  named without `params/`.
  """

  model: Any
  arrays: Mapping[str, np.ndarray]
  tensors: Mapping[str, coding.Tensor]


class SearchSubject(NamedTuple):
  """A trained network with its options: what a search needs of it.

  A candidate is levels, int32 [G]; images, float32 [N, H, W, C], are those from
  which batch normalization takes its statistics, None: it keeps its own.

  Attributes:
    priced: its decisions and what they cost.
    candidates: the network and its options, which are scored.
    errors: of each decision alone, float32 [G, M]; 0 at its last level.
    variables: `(candidate, images) -> variables`, shapes unchanged.
    network: `(candidate, images) -> Network`, which computes the same.
    policy: what a candidate decides, a row a decision or layer: its `name`, the
      `fraction` of it that is kept, a `label`, and details.
    file_budget: whether the cost is that of the file that is written.
  """

  priced: PricedSpace
  candidates: Scorable
  errors: jax.Array
  variables: Callable[[np.ndarray, jax.Array | None], Any]
  network: Callable[[np.ndarray, jax.Array | None], Network]
  policy: Callable[[np.ndarray], list[dict[str, Any]]]
  file_budget: bool = False


class Kind(NamedTuple):
  """A kind of decisions.

  Attributes:
    price: `(config, task, abstract variables) -> PricedSpace`, found out
      before the network is trained; None: what is decided costs more or less
      by the network's weights. ValueError where the config can't be used.
    make: `(config, task, variables, batches, key) -> SearchSubject`, where
      batches are preprocessed training images, float32 [B, N, H, W, C].
    labels: what the labels of a policy are, a heading.
    options: a named tuple of them, with defaults.
    costs: makers of cost models, by name.
  """

  price: Callable[[Mapping[str, Any], Task, Any], PricedSpace | None]
  make: Callable[
    [Mapping[str, Any], Task, Any, jax.Array, jax.Array], SearchSubject
  ]
  labels: str
  options: Callable[..., Any]
  costs: Mapping[str, Callable[..., Any]]


def arrays_of(variables: Any) -> dict[str, np.ndarray]:
  """Returns the arrays of a network as a file names them."""
  rest = {k: v for k, v in variables.items() if k != 'params'}
  return named_arrays(variables['params'], rest)


def named(given: Mapping[str, Any], field: str) -> dict[str, Any]:
  """Returns a group of fields: a name, and the arguments of what it names.

  Raises:
    ValueError: it has no name.
  """
  options = dict(given[field])
  if 'name' not in options:
    raise ValueError(f'search.{field}.name is missing')
  return options


def options_of(
  given: Mapping[str, Any], options: Callable[..., Any]
) -> dict[str, Any]:
  """Returns the options of the decisions of a search, defaults filled in.

  Args:
    given: the group `search` of a config.
    options: of the kind of decisions that it names.

  Raises:
    ValueError: an option is unknown, or of another type.
  """
  arguments = named(given, 'decisions')
  name = arguments.pop('name')
  found = make_named('search.decisions', name, {name: options}, arguments)
  return found._asdict()


def refit_of(given: Mapping[str, Any]) -> Refit:
  """Returns how the group `search` of a config wants layers refitted."""
  return Refit(**{name: given['refit'][name] for name in Refit._fields})
