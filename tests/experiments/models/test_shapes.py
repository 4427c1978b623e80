import math

import pytest

from experiments.models.shapes import (
  NETWORKS,
  alexnet,
  ptb_lstm,
  resnet50,
)


def counts(shapes):
  sizes = {name: math.prod(shape) for name, shape in shapes.items()}
  vectors = [sizes[n] for n, shape in shapes.items() if len(shape) == 1]
  return sum(sizes.values()), sum(vectors)


@pytest.mark.parametrize(
  ('network', 'parameters', 'in_vectors', 'ratio'),
  [
    (alexnet, 60_965_224, 10_568, 597),
    (resnet50, 25_557_032, 54_120, 277),
    (ptb_lstm, 51_034_000, 34_000, 462),
  ],
)
def test_counts_give_the_published_ratios(
  network, parameters, in_vectors, ratio
):
  assert counts(network()) == (parameters, in_vectors)
  # Lin et al. 2018, tables 3 and 4: 6 bytes for a thousandth of the matrices,
  # 4 for each element of a vector.
  sent = 6 * 1e-3 * (parameters - in_vectors) + 4 * in_vectors
  assert 4 * parameters / sent == pytest.approx(ratio, abs=1)


def test_resnet50_has_the_layers_of_the_paper():
  kernels = {n: s for n, s in resnet50().items() if n.endswith('kernel')}
  # 50 layers with weights, and a projection at the head of each stage.
  assert len(kernels) == 50 + 4
  assert kernels['stem/kernel'] == (7, 7, 3, 64)
  assert kernels['stage4/block1/shortcut/kernel'] == (1, 1, 1024, 2048)


def test_networks_by_name():
  assert NETWORKS['vector']() == {'vector': (25_600_000,)}
  for network in NETWORKS.values():
    assert all(min(shape) > 0 for shape in network().values())
