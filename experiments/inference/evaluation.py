"""Networks in files, and what they score on the data that they are for."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import coding, inference
from experiments import datasets
from experiments.compression.files import as_variables, check_shapes
from experiments.compression.weights import read_weights
from experiments.config import resolve
from experiments.models import make_model
from experiments.models.geometry import in_plain_layers
from experiments.training.evaluation import Evaluator
from experiments.training.input import EvaluationInput
from experiments.training.objectives import (
  make_classification_counts,
  make_preprocess,
)
from experiments.training.workers import PER_WORKER, REPLICATED, make_workers

_DATASET = (
  'name', 'source', 'data_dir', 'validation', 'image_size', 'memory_limit',
)  # fmt: skip


class FileNetwork(NamedTuple):
  """A network of a file, and the examples to measure it on."""

  params: Any  # host arrays
  model_state: Any  # of one worker
  # `(params, model_state) -> {'accuracy', 'loss'}`.
  measure: Callable[[Any, Any], dict[str, float]]
  examples: int  # number of them
  # Of the plan, by name of the kernel; none without one.
  choices: Mapping[str, inference.Choice]


def load(
  model: pathlib.Path,
  config: Mapping[str, Any],
  *,
  split: str = 'test',
  batch_size: int = 1000,
  backend: str = '',
  mode: str = 'exact',
  plan_cache: pathlib.Path | None = None,
) -> FileNetwork:
  """Reads a network and the data that it is for.

  Args:
    model: .bwz, or safetensors with the same names.
    config: whose `model` and `dataset` are used.
    split: 'test', or 'validation' if the config holds some examples out.
    batch_size: examples at a time.
    backend: of `inference.BACKENDS`: a .bwz file is run from its compressed
      form. Empty: its weights are decoded.
    mode: of `inference.MODES`, with a backend.
    plan_cache: of `inference.plan_layers`, with a backend: layers are kept in
      the forms that are fastest. None: in those of the file.

  Raises:
    ValueError: the file is malformed or of another network; the data set can't
      be read or has no such split; the backend can't be used.
  """
  config = resolve(config)
  given = config['dataset']
  dataset = datasets.load(**{name: given[name] for name in _DATASET})
  examples = getattr(dataset, split)
  if examples is None:
    raise ValueError(f'split={split!r}: dataset.validation is 0')
  network = make_model(config['model'], num_classes=dataset.num_classes)
  image = jnp.zeros((1, *dataset.image_shape), jnp.float32)
  wanted = jax.eval_shape(network.init, jax.random.key(0), image)
  choices: Mapping[str, inference.Choice] = {}
  if backend:
    params, model_state = _compressed(model, wanted)
    network = in_plain_layers(network)
    compressed = inference.CompressedNetwork(
      network, backend=backend, mode=mode
    )
    if plan_cache:
      images = jax.ShapeDtypeStruct((batch_size, *image.shape[1:]), image.dtype)
      calls = inference.layer_calls(network, wanted, images)
      with coding.open_file(model) as reader:
        planned, choices = inference.plan_layers(
          calls, {'params': params}, reader.array, backend=backend, mode=mode,
          cache=plan_cache,
        )  # fmt: skip
      params = planned['params']
    network = compressed
  else:
    params, model_state = as_variables(read_weights(model), str(model))
    check_shapes({'params': params, **model_state}, wanted, str(model))
  workers = make_workers('pmap', {'data': 1})
  evaluator = Evaluator(
    make_classification_counts(network, make_preprocess(given)),
    EvaluationInput(examples, workers, batch_size=batch_size),
    workers,
  )

  def measure(params: Any, model_state: Any) -> dict[str, float]:
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[None], model_state)
    return evaluator(
      workers.place(params, REPLICATED), workers.place(state, PER_WORKER)
    )

  return FileNetwork(params, model_state, measure, len(examples), choices)


def _compressed(model: pathlib.Path, wanted: Any) -> tuple[Any, Any]:
  """Parameters, compressed, and model state of a file.

  Raises:
    ValueError: it is no .bwz file, or of another network.
  """
  if model.suffix != '.bwz':
    raise ValueError(f'backend: model={str(model)!r} is not compressed')
  with coding.open_file(model) as reader:
    shapes = {
      name: jax.ShapeDtypeStruct(reader.shape(name), np.float32)
      for name in reader
    }
  params, model_state = as_variables(shapes, str(model))
  check_shapes({'params': params, **model_state}, wanted, str(model))
  forms = inference.flax_forms(shapes)
  nested = inference.load_compressed(model, forms=forms)
  return nested.pop('params'), nested


def evaluate(
  model: pathlib.Path,
  config: Mapping[str, Any],
  *,
  split: str = 'test',
  **options: Any,
) -> dict[str, Any]:
  """Returns accuracy, loss and size of a network in a file; see `load`."""
  loaded = load(model, config, split=split, **options)
  result = loaded.measure(loaded.params, loaded.model_state)
  leaves = jax.tree.leaves(
    (loaded.params, loaded.model_state), is_leaf=inference.is_matrix
  )
  dense = 4 * sum(math.prod(leaf.shape) for leaf in leaves)
  size = model.stat().st_size
  return {
    'model': str(model),
    'accuracy': result['accuracy'],
    'loss': result['loss'],
    'split': split,
    'examples': loaded.examples,
    'file_bytes': size,
    'dense_bytes': dense,
    'ratio': dense / size,
    'plan': {
      name: dataclasses.asdict(choice)
      for name, choice in loaded.choices.items()
    },
  }


def config_of(
  model: pathlib.Path, config: pathlib.Path | None
) -> dict[str, Any]:
  """Returns what says which network and which data a file belongs to.

  Args:
    model: path of the .bwz or safetensors file.
    config: a `config.json`; None: the metadata of a .bwz file, else the
      `config.json` in its directory.

  Raises:
    ValueError: there is none of them, or it is no JSON.
  """
  if config is None and model.suffix == '.bwz':
    if not model.is_file():
      raise ValueError(f'model={str(model)!r} is not there')
    with coding.open_file(model) as reader:
      if 'model' in reader.metadata:
        return dict(reader.metadata)
  path = config or model.parent / 'config.json'
  if not path.is_file():
    raise ValueError(
      f'config={str(path)!r} is not there, and {str(model)!r} does not say '
      'which network it is'
    )
  try:
    found = json.loads(path.read_text('utf-8'))
  except ValueError as error:
    raise ValueError(f'config={str(path)!r} is no JSON: {error}') from None
  return {name: found[name] for name in ('model', 'dataset') if name in found}


def plan_lines(choices: Mapping[str, inference.Choice]) -> list[str]:
  """Returns a line for each layer: its form, and what each form takes.

  >>> for line in plan_lines({'a': inference.Choice(kind='dense', seconds={
  ...     'dense': 2e-6, 'codebook4': 3e-6})}): print(line)
  a  dense, nothing is gained  dense 2.0 µs, codebook4 3.0 µs
  """
  name_width = max(map(len, choices), default=0)
  lines = []
  for name, choice in choices.items():
    gain = choice.seconds['dense'] / choice.seconds[choice.kind]
    said = f'{choice.kind}, {gain:.2f}x'
    if choice.kind == 'dense':
      said = 'dense, nothing is gained'
    times = ', '.join(
      f'{kind} {1e6 * seconds:.1f} µs'
      for kind, seconds in choice.seconds.items()
    )
    lines.append(f'{name:{name_width}}  {said}  {times}')
  return lines
