"""The benchmark of compressed products, on a shape that takes no time."""

import json

import numpy as np
import pytest

from experiments.benchmark.inference import products as benchmark
from experiments.inference import onnx_products


def test_rows(tmp_path, capsys):
  output, plot = tmp_path / 'i.json', tmp_path / 'roofline.png'
  assert not benchmark.main(
    ['--shapes', '64x32', '--batches', '1', '3', '--repeats', '1',
     '--output', str(output), '--plot', str(plot)]
  )  # fmt: skip
  assert plot.stat().st_size > 1000
  found = json.loads(output.read_text())
  assert found['copy_bytes_per_second'] > 0
  rows = {(row['form'], row['batch']): row for row in found['rows']}
  for (form, batch), row in rows.items():
    most = {'int8': 3e-2, 'int16': 2e-4, 'exact': 1e-6}.get(
      form.partition(', ')[2], 0.3
    )
    most = 0.3 if form.startswith('onnx') else most
    assert row['error'] < most, form
    assert row['shape'] == '64x32'
    assert row['gains_until_batch'] in (0, 1, 3)
    assert (rows[form, 1]['speedup'] <= 1) == (
      rows[form, batch]['gains_until_batch'] == 0
    )
  dense = rows['dense float32', 1]
  assert (dense['bytes'], dense['speedup'], dense['ceiling']) == (8192, 1, 1)
  # Half a block of 128 codes is empty; the codebook has 64 bytes.
  assert rows['4-bit codebook, exact', 1]['bytes'] == 32 * 64 + 64
  assert 'gains until batch' in capsys.readouterr().out


def test_largest_batch_that_gains():
  rows = [
    {'shape': 's', 'form': 'f', 'batch': batch, 'speedup': speedup}
    for batch, speedup in ((4, 0.9), (1, 3.0), (2, 1.5), (8, 1.1))
  ]
  benchmark.add_crossovers(rows)
  assert {row['gains_until_batch'] for row in rows} == {2}


@pytest.mark.parametrize('form', onnx_products.FORMS)
def test_forms_of_onnxruntime(form):
  pytest.importorskip('onnx')
  pytest.importorskip('onnxruntime')
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(64, 8)).astype(np.float32)
  x = rng.normal(size=(2, 64)).astype(np.float32)
  y = onnx_products.make_product(form, weights)(x)
  error = np.linalg.norm(y - x @ weights) / np.linalg.norm(x @ weights)
  assert error < (0.03 if form == 'onnxruntime int8' else 0.2)
  assert onnx_products.nbytes(form, weights) < weights.nbytes / 3


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--shapes', '64'], "shapes='64' is not INPUTSxOUTPUTS"),
    (['--shapes', '0x3'], "shapes='0x3' is empty"),
    (['--batches', '0'], 'batches=0 is not positive'),
    (['--repeats', '0'], 'repeats=0 is not positive'),
  ],
)
def test_bad_arguments(arguments, message, capsys):
  assert benchmark.main(arguments) == 2
  assert message in capsys.readouterr().err
