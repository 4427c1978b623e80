"""Whole networks: small ones, in all forms."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import coding, tree
from experiments.benchmark.inference import models, networks
from experiments.benchmark.inference import products as benchmark
from experiments.compression.weights import write_safetensors
from experiments.inference import onnx_networks
from experiments.models.lenet import LeNet300
from experiments.models.minilm import MiniLM

RNG = np.random.default_rng(0)


def variables_of(model, *inputs):
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  return jax.tree.map(
    lambda like: jnp.asarray(RNG.normal(size=like.shape), jnp.float32), shapes
  )


def shared(name, array):
  """Four bits for each weight of a matrix; a codebook for each output."""
  array = np.asarray(array)
  if array.ndim < 2:
    return coding.RawTensor(array)
  most = np.abs(array).max()
  levels = np.linspace(-most, most, 16).astype(np.float32)
  codes = np.abs(array[..., None] - levels).argmin(-1)
  if name.endswith('embedding'):
    return coding.CodebookTensor(codes, levels)
  books = np.tile(levels, (array.shape[1], 1))
  return coding.CodebookTensor.along_axis(codes, books, axis=1)


@pytest.mark.slow
def test_rows_of_a_network(tmp_path):
  model = MiniLM(vocabulary=20, positions=9, width=32, heads=4, features=(64,))
  tokens = jnp.array([[3, 7, 1, 19, 4, 5]])
  inputs = (tokens, tokens > 0)
  dense = variables_of(model, *inputs)
  file = tmp_path / 'model.bwz'
  tensors = {n: shared(n, a) for n, a in tree.named_leaves(dense)}
  coding.write(file, tensors)
  # What the file holds, so that only arithmetic may differ.
  dense = coding.load_tree(file)
  network = models.Network(
    name='small',
    model=model,
    variables=jax.tree.map(jnp.asarray, dense),
    file=file,
    inputs={'length 6': inputs},
    examples=[inputs],
    score=models.cosine,
    graph=functools.partial(onnx_networks.minilm_graph, heads=4),
  )
  rows = models.network_rows(
    network, backend='auto', repeats=1, modes=('int8',)
  )
  by_form = {row['form']: row for row in rows}
  for form, row in by_form.items():
    assert (row['model'], row['input']) == ('small', 'length 6')
    assert row['ms'] > 0
    if form.startswith('onnx'):
      continue
    most = 0.02 if 'int8' in form or 'bfloat16' in form else 1e-5
    assert 1 - row['cosine'] < most, form
  dense_size = 4 * sum(a.size for a in jax.tree.leaves(dense))
  assert by_form['dense float32']['bytes'] == dense_size
  assert by_form['dense bfloat16']['bytes'] == dense_size // 2
  row = by_form['bwz, int8']
  assert row['file_bytes'] == file.stat().st_size
  assert row['bytes'] < dense_size
  assert max(
    row['speedup']
    for form, row in by_form.items()
    if form.startswith('dense f')
  ) == pytest.approx(1)


def test_graph_of_minilm_for_onnxruntime():
  pytest.importorskip('onnx')
  pytest.importorskip('onnxruntime')
  model = MiniLM(vocabulary=20, positions=9, width=32, heads=4, features=(64,))
  tokens = jnp.array([[3, 7, 1, 19, 4, 5]])
  inputs = (tokens, tokens > 0)
  variables = variables_of(model, *inputs)
  wanted = np.asarray(model.apply(variables, *inputs))
  graph = functools.partial(onnx_networks.minilm_graph, heads=4)
  for form in onnx_networks.FORMS:
    session = onnx_networks.make_session(form, graph, variables, inputs)
    least = 1 - 1e-6 if form == 'onnxruntime float32' else 0.9
    assert float((session.run() * wanted).sum()) > least, form
    assert session.nbytes > 0


def test_graph_of_lenet300_for_onnxruntime():
  pytest.importorskip('onnx')
  pytest.importorskip('onnxruntime')
  model = LeNet300(features=(20, 10))
  images = jnp.asarray(RNG.normal(size=(1, 28, 28, 1)), jnp.float32)
  variables = variables_of(model, images)
  graph = onnx_networks.lenet300_graph
  session = onnx_networks.make_session(
    'onnxruntime float32', graph, variables, (images,)
  )
  wanted = model.apply(variables, images)
  np.testing.assert_allclose(session.run(), wanted, rtol=1e-4, atol=1e-3)
  with pytest.raises(ValueError, match='784 inputs, not blocks of 32'):
    onnx_networks.make_session('onnxruntime 4-bit', graph, variables, (images,))


def test_names_are_those_of_the_networks():
  assert set(benchmark.MODELS) == set(networks.MAKERS)


def test_scores():
  wanted = [np.array([[3.0, 4.0]]), np.array([[0.0, 2.0]])]
  outputs = [np.array([[4.0, 3.0]]), np.array([[0.0, 1.0]])]
  assert models.top1(outputs, wanted) == {
    'cosine': 0.98,
    'cosine_least': 0.96,
    'same_top1': 0.5,
  }


@pytest.mark.slow
def test_lenet300_from_a_run(tmp_path, capsys):
  """A file that is there is not made again."""
  model = LeNet300()
  variables = variables_of(model, jnp.zeros((1, 28, 28, 1)))
  folder = tmp_path / 'lenet300'
  folder.mkdir()
  arrays = {n: np.asarray(a) for n, a in tree.named_leaves(variables)}
  coding.write(folder / 'dense.bwz', arrays)
  write_safetensors(folder / 'dense.safetensors', arrays)
  coding.write(
    folder / networks.MODEL,
    {n: shared(n, a) for n, a in arrays.items()},
    metadata={'model': {'name': 'lenet300'}, 'dataset': {'name': 'mnist'}},
  )
  output = tmp_path / 'rows.json'
  assert not benchmark.main(
    ['--models', 'lenet300', '--folder', str(tmp_path), '--repeats', '1',
     '--modes', 'int8', '--output', str(output)]
  )  # fmt: skip
  rows = json.loads(output.read_text())['rows']
  assert {row['input'] for row in rows} == {'28x28'}
  assert all(0 <= row.get('accuracy', 0) <= 1 for row in rows)
  assert 'same top1' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--models', 'minilm', 'lenet'], "models='lenet' is unknown"),
    (['--models', 'minilm', '--examples', '0'], 'examples=0 is not positive'),
    (['--models', 'minilm', '--pixels', '0'], 'pixels=0 is not positive'),
  ],
)
def test_bad_arguments(arguments, message, capsys):
  assert benchmark.main(arguments) == 2
  assert message in capsys.readouterr().err
