"""Coding and decoding 25 million weights on one core, beside zstandard.

    python -m experiments.benchmark coding [--network pruned] [--output F.json]

Networks have the shapes of ResNet-50 (He et al., 2015): kernels HWIO, batch
norms and the last layer, 25.56 million parameters. Weights are normal, with a
scale for each output channel; they are pruned by magnitude and share values
that lie linearly between the extremes of their array, as Deep Compression
begins (Han, Mao & Dally, 2015). Batch norms stay float32.

Everything runs on one core, in memory. Decoding ends with the float32 arrays,
also from zstandard, which is given the codes of all weights, a byte each,
codebooks and batch norms. `limit_s` is the time that memory takes to copy as
many bytes as the arrays have. Repeats are interleaved. Seconds are those of the
processor, medians, which others on the machine disturb least; `clock` is the
time on the wall. Ratios are medians of ratios within a repeat. An encoder that
takes over `--slow` seconds runs once. Peaks are what the resident set grew by,
the most of any repeat.
"""

import contextlib
import functools
import math
import os
import pathlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np

from bandwidth import coding
from experiments.benchmark.harness import Benchmark
from experiments.measuring.memory import Cost, cost_of
from experiments.models.shapes import resnet50_convolutions
from experiments.runtime import options

_BWZ = ('huffman', 'auto', 'ans', 'fixed')
_ZSTANDARD = (3, 19)

Tensors = dict[str, Any]


class Recipe(NamedTuple):
  """How a network is made small."""

  conv: float  # density of convolution kernels
  dense: float  # density of the last layer
  bits: int  # of a code, or of an integer level
  # levels with a step for each output channel, and no codebook
  integers: bool = False


NETWORKS = {
  'pruned': Recipe(0.3, 0.2, 5),
  'sparse': Recipe(0.02, 0.02, 5),
  'codes4': Recipe(1.0, 1.0, 4),
  'int8': Recipe(1.0, 1.0, 8, integers=True),
}


def _name_of(stage: int, block: int, layer: int) -> str:
  which = ('conv0', 'conv1', 'conv2', 'projection')[layer]
  return f'stage{stage}_block{block}/{which}'


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
  """Returns the shapes of ResNet-50's parameters and running statistics.

  >>> import math
  >>> shapes = resnet50_shapes()
  >>> sum(math.prod(s) for n, s in shapes.items() if n.startswith('params/'))
  25557032
  """
  shapes: dict[str, tuple[int, ...]] = {}
  for name, shape in resnet50_convolutions(_name_of):
    shapes[f'params/{name}/kernel'] = shape
    for part in ('scale', 'bias'):
      shapes[f'params/{name}_norm/{part}'] = shape[-1:]
    for part in ('mean', 'var'):
      shapes[f'batch_stats/{name}_norm/{part}'] = shape[-1:]
  shapes['params/head/kernel'] = (2048, 1000)
  shapes['params/head/bias'] = (1000,)
  return shapes


def make_network(recipe: Recipe, *, seed: int = 0) -> Tensors:
  """Returns the tensors of a network by name."""
  rng = np.random.default_rng(seed)
  out: Tensors = {}
  for name, shape in resnet50_shapes().items():
    weights = rng.standard_normal(shape, np.float32)
    if len(shape) == 1:
      out[name] = weights
      continue
    weights *= np.exp(0.3 * rng.standard_normal(shape[-1], np.float32))
    density = recipe.conv if len(shape) == 4 else recipe.dense
    if recipe.integers:
      out[name] = _integers(weights, recipe.bits)
    else:
      out[name] = _shared(weights, density, recipe.bits)
  return out


def _integers(weights: np.ndarray, bits: int) -> coding.UniformTensor:
  axes = tuple(range(weights.ndim - 1))
  step = np.abs(weights).max(axis=axes) / (2 ** (bits - 1) - 1)
  levels = np.rint(weights / step).astype(np.int32)
  return coding.UniformTensor(levels, step)


def _shared(
  weights: np.ndarray, density: float, bits: int
) -> coding.CodebookTensor:
  low, high = float(weights.min()), float(weights.max())
  first = int(density < 1)
  places = np.linspace(low, high, 2**bits - first, dtype=np.float32)
  step = (high - low) / (places.size - 1)
  codes = np.rint((weights - low) / step).astype(np.uint8) + first
  if density < 1:
    threshold = np.quantile(np.abs(weights), 1 - density)
    codes[np.abs(weights) < threshold] = 0
    places = np.concatenate([np.zeros(1, np.float32), places])
  return coding.CodebookTensor(codes, places)


class Method(NamedTuple):
  """An encoder and its decoder."""

  encode: Callable[[], bytes]  # from tensors to bytes
  # from these bytes to the arrays, in the order of the tensors
  decode: Callable[[bytes], list[np.ndarray]]


def _bwz(network: Tensors, coder: str) -> Method:
  def decode(data: bytes) -> list[np.ndarray]:
    with coding.decode(data) as reader:
      return [reader.array(name) for name in reader]

  return Method(lambda: coding.encode(network, coder=coder), decode)


def _zstandard(network: Tensors, level: int) -> Method:
  try:
    import zstandard
  except ImportError:
    raise ValueError(
      'the comparison needs zstandard: pip install zstandard'
    ) from None

  like = [
    [(part.dtype, part.shape) for part in _parts(tensor)]
    for tensor in network.values()
  ]

  def encode() -> bytes:
    parts = (part for tensor in network.values() for part in _parts(tensor))
    plain = b''.join(part.tobytes() for part in parts)
    return zstandard.ZstdCompressor(level=level).compress(plain)

  def decode(data: bytes) -> list[np.ndarray]:
    plain = zstandard.ZstdDecompressor().decompress(data)
    arrays, begin = [], 0
    for tensor, kinds in zip(network.values(), like, strict=True):
      parts = []
      for dtype, shape in kinds:
        part = np.frombuffer(plain, dtype, math.prod(shape), begin)
        parts.append(part.reshape(shape))
        begin += part.nbytes
      whole = isinstance(tensor, np.ndarray)
      arrays.append(parts[0] if whole else type(tensor)(*parts).to_array())
    return arrays

  return Method(encode, decode)


def _parts(tensor: Any) -> list[np.ndarray]:
  """What zstandard is given: codes a byte each, then codebook or steps."""
  if isinstance(tensor, coding.CodebookTensor):
    return [tensor.codes, tensor.codebook]
  if isinstance(tensor, coding.UniformTensor):
    return [tensor.levels.astype(np.int8), tensor.step]
  return [tensor]


@contextlib.contextmanager
def _one_core() -> Generator[None]:
  """Keeps every thread of this process on one core, where the system can."""
  threads = pathlib.Path('/proc/self/task')
  if not hasattr(os, 'sched_setaffinity') or not threads.is_dir():
    yield
    return
  allowed = os.sched_getaffinity(0)
  # The last one: the first serves interrupts.
  _move(threads, {max(allowed)})
  try:
    yield
  finally:
    _move(threads, allowed)


def _move(threads: pathlib.Path, cores: set[int]) -> None:
  for thread in threads.iterdir():
    with contextlib.suppress(OSError):
      os.sched_setaffinity(int(thread.name), cores)


class _Measured(NamedTuple):
  size: int
  encode: list[Cost]
  decode: list[Cost]


def _measure(
  name: str, network: Tensors, *, repeats: int, slow: float
) -> list[dict[str, Any]]:
  """Returns a row for each method."""
  methods = {f'bwz {coder}': _bwz(network, coder) for coder in _BWZ}
  for level in _ZSTANDARD:
    methods[f'zstandard {level}'] = _zstandard(network, level)
  expected = [coding.tensors.as_tensor(t).to_array() for t in network.values()]
  data, results = {}, {}
  for key, method in methods.items():
    data[key], cost = cost_of(method.encode)
    arrays = method.decode(data[key])
    if not all(map(np.array_equal, arrays, expected)):
      raise ValueError(f'{key}: other arrays came back')
    first = [cost] if cost.seconds > slow else []
    results[key] = _Measured(len(data[key]), first, [])
    del arrays
  source = np.concatenate([array.reshape(-1) for array in expected])
  target, copies = np.zeros_like(source), []
  for _ in range(repeats):
    copies.append(cost_of(functools.partial(np.copyto, target, source))[1])
    for key, method in methods.items():
      result = results[key]
      if not result.encode or result.encode[0].seconds <= slow:
        result.encode.append(cost_of(method.encode)[1])
      decode = functools.partial(method.decode, data[key])
      result.decode.append(cost_of(decode)[1])
  best = results[f'zstandard {_ZSTANDARD[-1]}']
  return [
    {'network': name, 'method': key, **_row(result, best, source, copies)}
    for key, result in results.items()
  ]


def _row(
  result: _Measured, best: _Measured, source: np.ndarray, copies: list[Cost]
) -> dict[str, Any]:
  encode, decode = result.encode, result.decode
  encode_s, decode_s = _median(encode, 0), _median(decode, 0)
  return {
    'bytes': result.size,
    'bits_per_weight': round(8 * result.size / source.size, 3),
    'by_zstandard_19': round(result.size / best.size, 3),
    'encode_s': round(encode_s, 3),
    'decode_s': round(decode_s, 3),
    'encode_clock_s': round(_median(encode, 1), 3),
    'decode_clock_s': round(_median(decode, 1), 3),
    'encode_mweights_s': round(source.size / encode_s / 1e6, 1),
    'decode_mweights_s': round(source.size / decode_s / 1e6, 1),
    'decoded_mb_s': round(source.nbytes / decode_s / 1e6, 1),
    'limit_s': round(_median(copies, 0), 4),
    'decode_by_limit': _ratio(decode, copies),
    'decode_by_zstandard_19': _ratio(decode, best.decode),
    'encode_peak_mb': round(max(c.peak for c in encode) / 1e6),
    'decode_peak_mb': round(max(c.peak for c in decode) / 1e6),
    'encode_repeats': len(encode),
  }


def _median(costs: list[Cost], place: int) -> float:
  return float(np.median([cost[place] for cost in costs]))


def _ratio(costs: list[Cost], others: list[Cost]) -> float:
  seconds, base = (np.array([c.seconds for c in x]) for x in (costs, others))
  return round(float(np.median(seconds / base)), 2)


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  for name in given.network:
    network = make_network(NETWORKS[name])
    with _one_core():
      yield _measure(name, network, repeats=given.repeats, slow=given.slow)
    del network


main = Benchmark(
  name='coding',
  about=__doc__,
  options={
    'network': options.choice(NETWORKS, list(NETWORKS)),
    'repeats': options.integer(5),
    'slow': options.number(5.0, 'seconds'),
  },
  measure=_rows,
  parts=lambda given: len(given.network),
  seed=0,
).main
