"""What searches share: their networks, one search, rows kept on disk."""

import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.search.problem.budget import check_budget
from bandwidth.search.problem.interface import Data, History, best
from experiments.compression.weights import read_weights
from experiments.config import named_config, resolve
from experiments.policy.kinds.kind import PricedSpace
from experiments.runtime import options
from experiments.training.run import run as train

OPTIONS = {
  'networks': options.text(['quickstart_search']),
  'evaluations': options.integer(400),
  'images': options.integer(None, 'that score candidates; [of the config]'),
  'runs': options.path('runs/search'),
}
"""Of a benchmark of searches."""

Program = Callable[..., History]
"""A compiled searcher, `(key, data, budget) -> history`."""


def network_config(name: str, images: int | None = None) -> dict[str, Any]:
  """The resolved config of a network, NAME or NAME:MODE.

  Args:
    name: of it.
    images: that score candidates; None: as the config has it.
  """
  file, _, mode = name.partition(':')
  config = dict(resolve(named_config(file, mode).to_dict()))
  if images:
    config['search'] = {**config['search'], 'images': images}
  return config


def network_arrays(name: str, runs: pathlib.Path) -> dict[str, np.ndarray]:
  """Trains the network of a config once; returns its arrays by name.

  Where `search.network` of the config names one, that is taken.
  """
  config = network_config(name)
  given = config.pop('search')['network']
  if given:
    return dict(read_weights(pathlib.Path(given)))
  directory = runs / name.replace(':', '-') / 'network'
  train(config, str(directory))
  return dict(read_weights(directory))


class Searched(NamedTuple):
  """What a search found."""

  candidate: np.ndarray  # the best one, int32 [G]
  score: float  # its
  evaluations: int  # how many there were
  seconds: float  # that they took


def search_once(
  program: Program,
  priced: PricedSpace,
  data: Data,
  *,
  fraction: float,
  seed: int,
) -> Searched:
  """Searches within a budget.

  Args:
    program: the searcher, compiled.
    priced: decisions and what they cost.
    data: of the problem.
    fraction: of the whole cost, the budget.
    seed: of what the searcher draws.

  Raises:
    ValueError: the budget cannot be reached.
  """
  budget = check_budget(priced.space, priced.costs, fraction * priced.whole)
  start = time.monotonic()
  history = jax.device_get(
    program(jax.random.key(seed), data, jnp.int32(budget))
  )
  seconds = time.monotonic() - start
  place = int(best(history))
  return Searched(
    candidate=np.asarray(history.candidates[place]),
    score=float(history.scores[place]),
    evaluations=len(history.scores),
    seconds=seconds,
  )


class KeptRows:
  """Rows in a file, one a line, which a stopped benchmark has left or will."""

  def __init__(self, path: pathlib.Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._path = path
    self.rows: list[dict[str, Any]] = []
    if path.exists():
      lines = path.read_text('utf-8').splitlines()
      self.rows = [json.loads(line) for line in lines]

  def of(self, networks: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the rows of some networks."""
    return [row for row in self.rows if row['network'] in networks]

  def missing(
    self, places: Iterable[Mapping[str, Any]]
  ) -> list[Mapping[str, Any]]:
    """Returns those fields of rows that no row has."""
    return [
      place
      for place in places
      if not any(place.items() <= row.items() for row in self.rows)
    ]

  def add(self, rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Writes rows to the end of the file, and returns them."""
    self.rows += rows
    with self._path.open('a', encoding='utf-8') as file:
      file.writelines(json.dumps(row) + '\n' for row in rows)
    return rows


def grouped(
  places: Iterable[Mapping[str, Any]], field: str
) -> list[tuple[Any, list[Mapping[str, Any]]]]:
  """Returns the values of a field, and the neighbors that have each."""
  by_field = itertools.groupby(places, lambda place: place[field])
  return [(value, list(group)) for value, group in by_field]
