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
from experiments.policy.candidates.scores import Examples
from experiments.training.tasks import Task


class Priced(NamedTuple):
  """Decisions and what they cost.

  Attributes:
    space: of decisions.
    costs: of the space.
    whole: what budgets are fractions of, in the unit of the cost model.
    exact: cost of a candidate in that unit.
  """

  space: Space
  costs: Costs
  whole: float
  exact: Callable[[np.ndarray], float]


class Network(NamedTuple):
  """A candidate as a network of its own.

  Attributes:
    model: it.
    arrays: of it, by name.
    tensors: parameters as a file holds them, named without `params/`; the
      others are float32.
  """

  model: Any
  arrays: Mapping[str, np.ndarray]
  tensors: Mapping[str, coding.Tensor]


class Subject(NamedTuple):
  """A trained network with options for each decision.

  Attributes:
    priced: its decisions.
    errors: of each decision alone, float32 [G, M].
    objective: `(arrays, candidate) -> float32 []`, the more the better.
    measure: `(arrays, candidate) -> {'accuracy', 'loss'}`.
    arrays: what both read, of given examples.
    variables: of the network with the options of a candidate, shapes unchanged;
      batch normalization has the statistics of the images given.
    network: the same as a network of its own.
    policy: what a candidate decides, a row a decision or layer: its `name`, the
      `fraction` of it that is kept, a `label`, and details.
    file_budget: whether the cost is that of the file that is written.
  """

  priced: Priced
  errors: jax.Array
  objective: Callable[[Any, jax.Array], jax.Array]
  measure: Callable[[Any, jax.Array], dict[str, jax.Array]]
  arrays: Callable[[Examples], dict[str, Any]]
  variables: Callable[[np.ndarray, jax.Array | None], Any]
  network: Callable[[np.ndarray, jax.Array | None], Network]
  policy: Callable[[np.ndarray], list[dict[str, Any]]]
  file_budget: bool = False


class Kind(NamedTuple):
  """A kind of decisions.

  Attributes:
    price: `(config, task, abstract variables) -> Priced`, found out
      before the network is trained; None: what is decided costs more or less
      by the network's weights. ValueError where the config can't be used.
    make: `(config, task, variables, batches, key) -> Subject`, where
      batches are preprocessed training images, float32 [B, N, H, W, C].
    labels: what the labels of a policy are.
    options: a named tuple of them, with defaults.
    costs: makers of cost models, by name.
  """

  price: Callable[[Mapping[str, Any], Task, Any], Priced | None]
  make: Callable[[Mapping[str, Any], Task, Any, jax.Array, jax.Array], Subject]
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
