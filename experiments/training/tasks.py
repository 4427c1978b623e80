"""What a network is trained for: classes of images, or the next token of text.

A task is everything in a run that knows what an example is. The data set that a
config names decides which it is; what builds and reports a run only reads the
fields.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets
from experiments.models import make_language_model, make_model
from experiments.training.objectives import (
  classification_scores,
  language_scores,
  make_augment,
  make_classification_counts,
  make_classification_loss,
  make_language_counts,
  make_language_loss,
  make_preprocess,
)


class Task(NamedTuple):
  """A network, its data, and what it is trained for."""

  name: str  # of the kind of task
  model: nn.Module  # the network, untrained
  example: jax.Array  # an input of the network, batch of one
  train: datasets.Split | datasets.StreamedSplit  # what is trained on
  evaluated: datasets.Split | datasets.StreamedSplit  # what it is evaluated on
  evaluated_on: str  # its name, 'validation' or 'test'
  # `(params, model_state, batch, key) -> (loss, (model_state, metrics))`.
  loss: Callable[..., Any]
  # `(params, model_state, batch) -> sums`.
  counts: Callable[..., dict[str, jax.Array]]
  # `sums -> scores`, of a whole split.
  scores: Callable[[Mapping[str, float]], dict[str, float]]
  metrics: tuple[str, ...] = ('accuracy',)  # that the loss returns
  writes_files: bool = True  # whether a file of the network can be measured


def make_task(config: Mapping[str, Any]) -> Task:
  """Builds the task of a resolved config.

  Raises:
    ValueError: the data set can't be read, the network is unknown or of another
      kind of task, or a field has no meaning in it.
  """
  given = config['dataset']
  if datasets.is_text(name=given['name'], source=given['source']):
    return language_modeling(config)
  return classification(config)


def classification(config: Mapping[str, Any]) -> Task:
  """Builds the task of telling images apart; as `make_task`."""
  fields = ('name', 'source', 'data_dir', 'validation', 'image_size')
  given = config['dataset']
  dataset = datasets.load(
    memory_limit=given['memory_limit'], **{name: given[name] for name in fields}
  )
  _check_channels(given, dataset.image_shape[-1])
  model = make_model(config['model'], num_classes=dataset.num_classes)
  preprocess = make_preprocess(given)
  augment = make_augment(config['augment'])
  return Task(
    name='classification',
    model=model,
    example=jnp.zeros((1, *dataset.image_shape), jnp.float32),
    train=dataset.train,
    evaluated=dataset.validation or dataset.test,
    evaluated_on='validation' if dataset.validation else 'test',
    loss=make_classification_loss(model, preprocess, augment),
    counts=make_classification_counts(model, preprocess),
    scores=classification_scores,
  )


def language_modeling(config: Mapping[str, Any]) -> Task:
  """Builds the task of predicting the next token; as `make_task`."""
  for group, field in (
    ('augment', 'pad'),
    ('augment', 'flip'),
    ('dataset', 'image_size'),
  ):
    if config[group][field]:
      raise ValueError(
        f'{group}.{field}={config[group][field]} is for images, and '
        f'dataset.name={config["dataset"]["name"]!r} is text'
      )
  fields = ('name', 'data_dir', 'validation', 'vocabulary', 'window')
  corpus = datasets.load_corpus(**{f: config['dataset'][f] for f in fields})
  model = make_language_model(
    config['model'], vocabulary=len(corpus.vocabulary)
  )
  return Task(
    name='language modeling',
    model=model,
    example=jnp.zeros((1, corpus.train.window), jnp.int32),
    train=corpus.train,
    evaluated=corpus.validation or corpus.test,
    evaluated_on='validation' if corpus.validation else 'test',
    loss=make_language_loss(model),
    counts=make_language_counts(model),
    scores=language_scores,
    writes_files=False,
  )


def _check_channels(config: Mapping[str, Any], channels: int) -> None:
  for field in ('mean', 'std'):
    if np.size(config[field]) not in (1, channels):
      raise ValueError(
        f'dataset.{field}={config[field]} is for {np.size(config[field])} '
        f'channels; the images have {channels}'
      )
