"""The network that a search found, as a file."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.compression.files import (
  MODEL,
  metadata_of,
  read_file,
  write_file,
)
from experiments.inference.evaluation import evaluate
from experiments.policy.setup import SearchSetup


class ExportResult(NamedTuple):
  """What the file of a network is."""

  model: dict[str, Any]  # its config, `name` and arguments of the network
  # What `evaluate` measures of the file, on the test set.
  tested: dict[str, Any]
  # Largest one of logits between the network of the file and the one, of the
  # whole network's shapes, that the search has scored. Of bits, neither rounds
  # what layers read.
  difference: float


class NetworkFile(NamedTuple):
  """A network that has been written to a file."""

  config: dict[str, Any]  # of the run, `model` that of the network
  model: Any  # the network, a `flax.linen.Module`


def write_network(
  prepared: SearchSetup, candidate: np.ndarray, path: pathlib.Path
) -> NetworkFile:
  """Writes the network of a candidate, levels int32 [G], to a .bwz file."""
  plan, subject = prepared.plan, prepared.subject
  statistics = prepared.check['examples'].statistics
  model, arrays, tensors = subject.network(candidate, statistics)
  config = {
    **plan.config,
    'model': _model_config(plan.config['model'], plan.task.model, model),
  }
  write_file(path, 'auto', arrays, tensors, metadata_of(config))
  return NetworkFile(config, model)


def export_file(
  prepared: SearchSetup, candidate: np.ndarray, directory: pathlib.Path
) -> ExportResult:
  """Writes a candidate's network to `model.bwz`, and measures the file."""
  path = directory / MODEL
  network = write_network(prepared, candidate, path)
  params, model_state = read_file(path)
  examples = prepared.check['examples']
  images = examples.images[0]
  whole = prepared.subject.variables(candidate, examples.statistics)
  logits = jax.jit(prepared.plan.task.model.apply)(whole, images)
  own = jax.jit(network.model.apply)({'params': params, **model_state}, images)
  return ExportResult(
    model=network.config['model'],
    tested=evaluate(path, network.config, split='test'),
    difference=float(jnp.abs(logits - own).max()),
  )


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
