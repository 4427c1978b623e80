"""The smaller network that a search found, as a file."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.candidates import export, kept_channels, masked
from experiments.evaluate import evaluate
from experiments.model_files import (
  MODEL,
  metadata_of,
  named_arrays,
  write_file,
)
from experiments.search_setup import Prepared


class Exported(NamedTuple):
  """What the file of a smaller network is.

  Attributes:
    model: its config, `name` and arguments of the network.
    tested: what `evaluate` measures of the file, on the test set.
    difference: largest one of logits between the smaller network and the masked
      one that the search has scored.
  """

  model: dict[str, Any]
  tested: dict[str, Any]
  difference: float


def export_file(
  prepared: Prepared, candidate: np.ndarray, directory: pathlib.Path
) -> Exported:
  """Writes the smaller network of a candidate and measures its file.

  Args:
    prepared: what was searched.
    candidate: levels, int32 [G].
    directory: gets `model.bwz`.
  """
  plan, candidates = prepared.plan, prepared.candidates
  examples = prepared.check['examples']
  whole = masked(candidates, candidate, examples.statistics)
  model, variables = export(candidates, candidate, whole)
  config = {
    **plan.config,
    'model': _model_config(plan.config['model'], candidates.model, model),
  }
  model_state = {k: v for k, v in variables.items() if k != 'params'}
  arrays = named_arrays(variables['params'], model_state)
  path = directory / MODEL
  write_file(path, 'auto', arrays, {}, metadata_of(config))
  logits = jax.jit(candidates.model.apply)(whole, examples.images[0])
  smaller = jax.jit(model.apply)(variables, examples.images[0])
  return Exported(
    model=config['model'],
    tested=evaluate(path, config, split='test'),
    difference=float(jnp.abs(logits - smaller).max()),
  )


def policy_of(
  prepared: Prepared, candidate: np.ndarray
) -> list[dict[str, Any]]:
  """Returns which channels of each group a candidate keeps, as data."""
  rows = []
  for decision, group in enumerate(prepared.plan.space.groups):
    kept = kept_channels(prepared.candidates, candidate, decision)
    rows.append(
      {
        'group': group.name,
        'channels': group.channels,
        'kept': len(kept),
        'channel_indices': kept.tolist(),
      }
    )
  return rows


def _model_config(
  given: Mapping[str, Any], whole: Any, small: Any
) -> dict[str, Any]:
  """The config of the smaller network: what differs from the whole one."""
  changed = {
    field: getattr(small, field)
    for field in whole.__dataclass_fields__
    if field not in ('parent', 'name')
    and getattr(small, field) != getattr(whole, field)
  }
  return json.loads(json.dumps({**given, **changed}, default=list))
