"""Shapes of the parameters of networks that are published results' subjects."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

Shapes = dict[str, tuple[int, ...]]


def alexnet() -> Shapes:
  """AlexNet with two groups (Krizhevsky et al. 2012), 60,965,224 parameters."""
  layers: Shapes = {
    'conv1': (11, 11, 3, 96),
    'conv2': (5, 5, 48, 256),
    'conv3': (3, 3, 256, 384),
    'conv4': (3, 3, 192, 384),
    'conv5': (3, 3, 192, 256),
    'fc6': (9216, 4096),
    'fc7': (4096, 4096),
    'fc8': (4096, 1000),
  }
  shapes: Shapes = {}
  for name, shape in layers.items():
    shapes[f'{name}/kernel'] = shape
    shapes[f'{name}/bias'] = shape[-1:]
  return shapes


def resnet50_convolutions(
  name_of: Callable[[int, int, int], str],
) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Yields the convolutions of ResNet-50 (He et al. 2016), HWIO.

  Args:
    name_of: (stage, block, layer) -> name, all from 0; the fourth layer of a
      block is the projection of its input. The first convolution is 'stem'.
  """
  yield 'stem', (7, 7, 3, 64)
  inputs = 64
  for stage, blocks in enumerate((3, 4, 6, 3)):
    width = 64 * 2**stage
    for block in range(blocks):
      yield name_of(stage, block, 0), (1, 1, inputs, width)
      yield name_of(stage, block, 1), (3, 3, width, width)
      yield name_of(stage, block, 2), (1, 1, width, 4 * width)
      if block == 0:
        yield name_of(stage, block, 3), (1, 1, inputs, 4 * width)
      inputs = 4 * width


def resnet50() -> Shapes:
  """ResNet-50 for 1000 classes, 25,557,032 parameters."""

  def name_of(stage: int, block: int, layer: int) -> str:
    which = ('conv1', 'conv2', 'conv3', 'shortcut')[layer]
    return f'stage{stage + 1}/block{block + 1}/{which}'

  shapes: Shapes = {}
  for name, shape in resnet50_convolutions(name_of):
    shapes[f'{name}/kernel'] = shape
    shapes[f'{name}_norm/scale'] = shape[-1:]
    shapes[f'{name}_norm/bias'] = shape[-1:]
  shapes['head/kernel'] = (2048, 1000)
  shapes['head/bias'] = (1000,)
  return shapes


def ptb_lstm() -> Shapes:
  """Two layers of 1500 units, tied embedding, 51,034,000 parameters.

  The word language model for the Penn Treebank of Zaremba et al. 2014 with the
  two biases of each gate that PyTorch has.
  """
  shapes: Shapes = {'embedding': (10_000, 1500), 'softmax/bias': (10_000,)}
  for layer in ('layer1', 'layer2'):
    shapes[f'{layer}/input'] = (1500, 6000)
    shapes[f'{layer}/recurrent'] = (1500, 6000)
    shapes[f'{layer}/input_bias'] = (6000,)
    shapes[f'{layer}/recurrent_bias'] = (6000,)
  return shapes


def vector() -> Shapes:
  """One vector of 25,600,000 elements."""
  return {'vector': (25_600_000,)}


def small() -> Shapes:
  """A matrix and a vector, for a quick look."""
  return {'kernel': (300, 200), 'bias': (200,)}


NETWORKS: dict[str, Callable[[], Shapes]] = {
  'alexnet': alexnet,
  'resnet50': resnet50,
  'ptb_lstm': ptb_lstm,
  'small': small,
  'vector': vector,
}
"""By name."""


def abstract(network: str) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the parameters of a network of `NETWORKS` as float32 shapes."""
  return {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in NETWORKS[network]().items()
  }
