"""Networks that `experiments.benchmark inference --models` times, by name.

Their files are `FOLDER/NAME/model.bwz`, and are made where they are missing by
the commands that make them for anyone, in minutes each.
"""

import functools
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets
from experiments.benchmark.inference import models
from experiments.benchmark.inference.models import Network, Outputs
from experiments.compression import pictures
from experiments.compression.files import read_file
from experiments.compression.packages import check_tokenizers, packaged
from experiments.compression.weights import read_weights
from experiments.config import resolve
from experiments.inference import onnx_networks
from experiments.inference.evaluation import config_of
from experiments.models import efficientnet_lite, minilm
from experiments.models.lenet import LeNet300
from experiments.runtime.command import run_python
from experiments.training.objectives import make_preprocess

MODEL = 'model.bwz'

_ROOT = pathlib.Path(__file__).parents[3]
_LENET300 = _ROOT / 'configs' / 'mnist_lenet300_deep_compression.py'
_LENGTHS = (1, 4, 8, 16)
_BATCH = 50
_FIRST_WORD = 1000


def _lenet300(given: Any, file: pathlib.Path) -> Network:
  del given
  config = resolve(config_of(file, None))
  preprocess = make_preprocess(config['dataset'])
  test: Any = datasets.load(name='mnist').test
  images = np.asarray(preprocess(jnp.asarray(test.image)))
  params, state = read_file(file.parent / 'dense.safetensors')
  labels = np.asarray(test.label)

  def score(outputs: Outputs, wanted: Outputs) -> dict[str, float]:
    right = np.concatenate(outputs).argmax(axis=1) == labels
    return {
      **models.top1(outputs, wanted),
      'accuracy': round(float(right.mean()), 4),
    }

  return Network(
    name='lenet300',
    model=LeNet300(),
    variables=jax.tree.map(jnp.asarray, {'params': params, **state}),
    file=file,
    inputs={'28x28': (images[:1],)},
    examples=[(images,)],
    score=score,
    graph=onnx_networks.lenet300_graph,
  )


def _minilm(given: Any, file: pathlib.Path) -> Network:
  check_tokenizers('minilm')
  from experiments.compression import sentences

  tokenizer = sentences.make_tokenizer(
    packaged('minilm', 'model/tokenizer.json')
  )
  texts = sentences.read_sentences(given.brown, given.split, given.examples)

  def of_length(length: int) -> tuple[Any, ...]:
    tokens = jnp.arange(_FIRST_WORD, _FIRST_WORD + length, dtype=jnp.int32)
    return tokens[None], jnp.ones((1, length), bool)

  return Network(
    name='minilm',
    model=minilm.MiniLM(),
    variables=minilm.minilm_variables(read_weights(packaged('minilm'))),
    file=file,
    inputs={f'length {length}': of_length(length) for length in _LENGTHS},
    examples=sentences.make_batches(tokenizer, texts, _BATCH),
    score=models.cosine,
    graph=onnx_networks.minilm_graph,
  )


def _efficientnet_lite0(given: Any, file: pathlib.Path) -> Network:
  test = pictures.read_pictures(given.cifar10, 'test_batch.bin', given.examples)
  enlarge = jax.jit(functools.partial(pictures.enlarged, pixels=given.pixels))
  batches = [
    (enlarge(test.images[begin : begin + _BATCH]),)
    for begin in range(0, len(test.images), _BATCH)
  ]
  arrays = read_weights(packaged('efficientnet_lite0'))
  return Network(
    name='efficientnet_lite0',
    model=efficientnet_lite.EfficientNetLite(),
    variables=efficientnet_lite.efficientnet_variables(arrays),
    file=file,
    inputs={f'{given.pixels}x{given.pixels}': (batches[0][0][:1],)},
    examples=batches,
    score=models.top1,
    graph=None,
  )


MAKERS: dict[str, Callable[[Any, pathlib.Path], Network]] = {
  'lenet300': _lenet300,
  'minilm': _minilm,
  'efficientnet_lite0': _efficientnet_lite0,
}
"""By name: (options of the benchmark, file) -> network."""


def rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  """Times networks, whose files are made where they are missing.

  Args:
    given: options of the benchmark.

  Raises:
    ValueError: a file can't be made; a data set or a package is not there.
  """
  with tempfile.TemporaryDirectory() as temporary:
    folder = given.folder or pathlib.Path(temporary)
    for name in given.models:
      file = folder / name / MODEL
      if not file.is_file():
        _make_file(_arguments(name, given, file), file)
      yield models.network_rows(
        MAKERS[name](given, file), backend=given.backend,
        repeats=given.repeats, modes=given.modes,
      )  # fmt: skip


def _arguments(name: str, given: Any, file: pathlib.Path) -> Sequence[str]:
  """What `experiments.compress` is told."""
  if name == 'lenet300':
    return '--config', str(_LENET300), '--workdir', str(file.parent)
  made = ('--network', name, '--output', str(file))
  return (*made, '--brown', str(given.brown)) if name == 'minilm' else made


def _make_file(arguments: Sequence[str], file: pathlib.Path) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  told = ' '.join(arguments)
  print(f'makes {file}: compress {told}', file=sys.stderr, flush=True)
  run_python(['-m', 'experiments.compress', *arguments], told, cwd=_ROOT)
