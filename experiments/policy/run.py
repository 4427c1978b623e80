"""A search: from a config to the smaller network in a file."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from bandwidth.files import local_path
from experiments.compression.weights import read_weights
from experiments.config import resolve
from experiments.policy.choice import measure_frontier, search
from experiments.policy.export import export_file
from experiments.policy.outcome import SEARCH, make_outcome, write_outcome
from experiments.policy.plan import SearchPlan, make_plan, network_variables
from experiments.policy.setup import prepare
from experiments.runtime.files import make_writable
from experiments.runtime.startup import InputError
from experiments.training.run import run as train


def run(
  config: Mapping[str, Any], workdir: str, *, started: float | None = None
) -> dict[str, Any]:
  """Searches as a config says.

  Args:
    config: as of a config file; silent fields get their defaults.
    workdir: of the search. A network that was trained there by the same config
      is not trained again.
    started: `time.monotonic()` when the program began; None: now.

  Returns:
    What `search.json` says.

  Raises:
    InputError: something in the config, the data or the directory can't be
      used.
  """
  started = time.monotonic() if started is None else started
  try:
    directory = local_path(workdir, argument='workdir')
    return _run(resolve(config), directory, started)
  except (ValueError, OSError) as error:
    raise InputError(' '.join(str(error).split())) from error


def _run(
  config: Mapping[str, Any], directory: pathlib.Path, started: float
) -> dict[str, Any]:
  clock = _Clock(started)
  plan = make_plan(config)
  clock.note('plan')
  variables = _network(plan, directory)
  clock.note('train')
  make_writable(directory)
  prepared = prepare(plan, variables)
  clock.note('prepare')
  found = search(prepared)
  clock.note('search')
  points = measure_frontier(prepared, found)
  clock.note('frontier')
  # It would speak of another model than the one that is written now.
  (directory / SEARCH).unlink(missing_ok=True)
  exported = export_file(prepared, found.best, directory)
  clock.note('export')
  outcome = make_outcome(prepared, found, points, exported)
  outcome['seconds'] = {
    **clock.seconds,
    **found.seconds,
    'total': time.monotonic() - started,
  }
  write_outcome(outcome, directory)
  return outcome


class _Clock:
  """Seconds of each part, one after another."""

  def __init__(self, started: float) -> None:
    self.seconds: dict[str, float] = {}
    self._last = started

  def note(self, part: str) -> None:
    now = time.monotonic()
    self.seconds[part] = now - self._last
    self._last = now


def _network(plan: SearchPlan, directory: pathlib.Path) -> Any:
  """Returns the variables of the trained network; trains it where needed."""
  given = plan.config['search']['network']
  source = pathlib.Path(given) if given else directory / 'network'
  if not given:
    # Searches of one network may differ.
    train({k: v for k, v in plan.config.items() if k != 'search'}, str(source))
  return network_variables(plan, read_weights(source), str(source))
