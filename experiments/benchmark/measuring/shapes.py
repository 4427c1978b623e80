"""Shapes of the parameters of networks that are published results' subjects."""

from collections.abc import Callable

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


def resnet50() -> Shapes:
  """ResNet-50 (He et al. 2016) for 1000 classes, 25,557,032 parameters."""
  shapes: Shapes = {}

  def convolution(name: str, size: int, inputs: int, outputs: int) -> None:
    shapes[f'{name}/kernel'] = (size, size, inputs, outputs)
    shapes[f'{name}_norm/scale'] = (outputs,)
    shapes[f'{name}_norm/bias'] = (outputs,)

  convolution('stem', 7, 3, 64)
  inputs = 64
  for stage, blocks in enumerate((3, 4, 6, 3)):
    width = 64 * 2**stage
    for block in range(blocks):
      name = f'stage{stage + 1}/block{block + 1}'
      convolution(f'{name}/conv1', 1, inputs, width)
      convolution(f'{name}/conv2', 3, width, width)
      convolution(f'{name}/conv3', 1, width, 4 * width)
      if block == 0:
        convolution(f'{name}/shortcut', 1, inputs, 4 * width)
      inputs = 4 * width
  shapes['head/kernel'] = (inputs, 1000)
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
