"""The TPU kernel through the TPU compiler, on a machine without a TPU."""

import importlib.util

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from bandwidth import inference
from bandwidth.inference import pallas


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="the TPU compiler is missing: pip install '.[tpu]'",
)
@pytest.mark.parametrize('batch', [1, 8])
def test_compiles_for_a_v5e(batch):
  from jax.experimental import topologies

  chips = topologies.get_topology_desc(
    platform='tpu', topology_name='v5e:2x2'
  ).devices
  on_chip = SingleDeviceSharding(chips[0])
  matrix = inference.codebook_matrix(
    np.zeros((256, 1024), np.uint8), np.arange(16)
  )

  def abstract(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=on_chip)

  x = abstract(np.zeros((batch, 1024), np.float32))
  product = jax.jit(lambda x, m: pallas.product(x, m, 'exact', device='tpu'))
  compiled = product.lower(x, jax.tree.map(abstract, matrix)).compile()
  assert 'tpu_custom_call' in compiled.as_text()
  # Neither the dense weights nor anything of their size is made.
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < 4 * 256 * 1024
