"""Decisions on channels and precision together, in bytes of the file."""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bandwidth.search.decisions.joint_space import (
  JOINT_COSTS,
  exact_joint_cost,
  joint_cost_model,
  tabulate_joint,
)
from bandwidth.search.problem.cost import Costs
from experiments.compression.files import metadata_of, write_file
from experiments.policy.candidates.channels import masked, network_space
from experiments.policy.candidates.joint import (
  JointCandidates,
  export_joint,
  make_joint,
  policy_rows,
)
from experiments.policy.kinds.kind import (
  Kind,
  Network,
  PricedSpace,
  SearchSubject,
  named,
  options_of,
  refit_of,
)
from experiments.training.tasks import Task

FILE_BYTES = 'file_bytes'


class Options(NamedTuple):
  """Options of the decisions."""

  # About how many a weight takes: the steps to choose among.
  bits: tuple[float, ...] = (
    *(0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0),
  )
  kept: Any = None  # channels by kernel that are given; 'all': none is removed


def _check(config: Mapping[str, Any], task: Task, variables: Any) -> None:
  """Finds out what can be without weights: entropies hang on them."""
  given = config['search']
  options_of(given, Options)
  joint_cost_model(**named(given, 'cost'))
  network_space(
    task.model,
    variables,
    task.example,
    divisor=given['divisor'],
    smallest=given['smallest'],
  )


def _make(
  config: Mapping[str, Any],
  task: Task,
  variables: Any,
  batches: jax.Array,
  key: jax.Array,
) -> SearchSubject:
  given = config['search']
  options = options_of(given, Options)
  joint = make_joint(
    task.model,
    variables,
    batches,
    divisor=given['divisor'],
    smallest=given['smallest'],
    most_levels=given['most_levels'],
    bits=tuple(options['bits']),
    kept=options['kept'],
    refit=refit_of(given),
    key=key,
  )

  def network(candidate: np.ndarray, images: jax.Array | None) -> Network:
    return Network(*export_joint(joint, candidate, images))

  return SearchSubject(
    priced=_priced(joint, config, variables),
    candidates=joint.candidates,
    errors=joint.errors,
    variables=functools.partial(masked, joint.candidates),
    network=network,
    policy=functools.partial(_policy, joint),
    file_budget=given['cost']['name'] == FILE_BYTES,
  )


def _priced(
  joint: JointCandidates, config: Mapping[str, Any], variables: Any
) -> PricedSpace:
  given = config['search']
  model = joint_cost_model(**named(given, 'cost'))
  space, choices = joint.space, joint.choices
  costs = tabulate_joint(space, choices, model)

  def exact(candidate: np.ndarray) -> float:
    return exact_joint_cost(space, choices, model, candidate)

  if given['cost']['name'] != FILE_BYTES:
    return PricedSpace(space, costs, exact(space.full()), exact)
  # What a file has beyond the codes: names, shapes, tables of the coder.
  over = _overhead(joint, exact, metadata_of(config))
  whole = sum(4.0 * x.size for x in jax.tree.leaves(variables))
  return PricedSpace(
    space,
    _raised(costs, over),
    whole,
    lambda candidate: exact(candidate) + over,
  )


def _overhead(
  joint: JointCandidates,
  exact: Callable[[np.ndarray], float],
  metadata: Mapping[str, Any],
) -> float:
  """The most that files of some candidates have above their price."""
  full = joint.space.full()
  tried = [full * part // 4 for part in range(5)]
  with tempfile.TemporaryDirectory() as folder:
    return max(
      _bytes_of(joint, candidate, metadata, pathlib.Path(folder) / 'model.bwz')
      - exact(candidate)
      for candidate in tried
    )


def _bytes_of(
  joint: JointCandidates,
  candidate: np.ndarray,
  metadata: Mapping[str, Any],
  path: pathlib.Path,
) -> int:
  _, arrays, tensors = export_joint(joint, candidate)
  write_file(path, 'auto', arrays, tensors, metadata)
  return path.stat().st_size


def _raised(costs: Costs, amount: float) -> Costs:
  """Costs with a constant on the first layer."""
  units = int(np.ceil(max(amount, 0.0) / costs.unit))
  return costs._replace(units=costs.units.at[0].add(units))


def _policy(
  joint: JointCandidates, candidate: np.ndarray
) -> list[dict[str, Any]]:
  return [
    {
      'name': row['kernel'].removeprefix('params/').removesuffix('/kernel'),
      'fraction': row['kept'] / row['channels'],
      'label': f'{row["kept"]}, {row["bits_per_weight"]:.1f} bits',
      **row,
    }
    for row in policy_rows(joint, candidate)
  ]


KIND = Kind(
  _check, _make, 'channels kept, bits of a weight', Options, JOINT_COSTS
)
