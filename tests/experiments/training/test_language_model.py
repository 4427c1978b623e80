"""The second task of the training program: predicting the next token."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.datasets import TokenSplit
from experiments.models import make_language_model, make_model
from experiments.runtime.startup import InputError
from experiments.training.evaluation import Evaluator
from experiments.training.input import EvaluationInput
from experiments.training.objectives import (
  language_scores,
  make_language_counts,
  make_language_loss,
)
from experiments.training.run import run
from experiments.training.workers import PER_WORKER, REPLICATED, make_workers

VOCABULARY, HIDDEN = 11, 6


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def lstm_by_hand(x, p):
  """Zaremba et al., equations 3, token by token; x [N, T, I]."""
  outputs = np.zeros((*x.shape[:2], HIDDEN))
  h = c = np.zeros((x.shape[0], HIDDEN))
  for t in range(x.shape[1]):
    gates = (
      x[:, t] @ p['input']['kernel']
      + p['input']['bias']
      + h @ p['recurrent']['kernel']
      + p['recurrent']['bias']
    )
    i, f, g, o = (gates[:, k * HIDDEN : (k + 1) * HIDDEN] for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    outputs[:, t] = h
  return outputs


def make_network(**arguments):
  """A network whose parameters, biases too, are all random."""
  config = {'name': 'lstm', 'hidden': HIDDEN, **arguments}
  model = make_language_model(config, vocabulary=VOCABULARY)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, VOCABULARY, (3, 5)).astype(np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  params = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
  )
  return model, params, tokens


@pytest.mark.parametrize('tied', [True, False])
def test_lstm_equals_a_plain_transcription(tied):
  model, p, tokens = make_network(tied=tied)
  x = p['embedding']['embedding'][tokens]
  for layer in ('lstm_0', 'lstm_1'):
    x = lstm_by_hand(x, p[layer])
  if tied:
    expected = x @ p['embedding']['embedding'].T + p['softmax_bias']
  else:
    expected = x @ p['softmax']['kernel'] + p['softmax']['bias']
  found = model.apply({'params': p}, tokens)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_a_logit_depends_on_no_later_token():
  model, p, tokens = make_network()
  other = tokens.copy()
  other[:, 3] = (other[:, 3] + 1) % VOCABULARY
  apply = jax.jit(model.apply)
  before, after = (apply({'params': p}, x) for x in (tokens, other))
  np.testing.assert_array_equal(before[:, :3], after[:, :3])
  assert np.abs(before - after)[:, 3:].max() > 0.1


def test_gradients_are_dense_and_right():
  model, p, tokens = make_network()
  loss = jax.jit(make_language_loss(model))
  batch = {'image': tokens, 'label': np.roll(tokens, -1, axis=1)}
  key = jax.random.key(0)
  grads, _ = jax.grad(loss, has_aux=True)(p, {}, batch, key)
  assert jax.tree.map(np.shape, grads) == jax.tree.map(np.shape, p)
  rng = np.random.default_rng(1)
  direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), p)

  def along(step):
    moved = jax.tree.map(
      lambda leaf, d: (leaf + step * d).astype(np.float32), p, direction
    )
    return float(loss(moved, {}, batch, key)[0])

  slope = (along(1e-2) - along(-1e-2)) / 2e-2
  expected = sum(
    float((g * d).sum())
    for g, d in zip(
      jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True
    )
  )
  assert slope == pytest.approx(expected, rel=1e-2)


def test_dropout_only_in_training():
  model, p, tokens = make_network(dropout=0.5)
  plain, q, _ = make_network()
  np.testing.assert_array_equal(
    model.apply({'params': p}, tokens), plain.apply({'params': q}, tokens)
  )
  loss = jax.jit(make_language_loss(model))
  batch = {'image': tokens, 'label': tokens}
  first, again, other = (
    float(loss(p, {}, batch, jax.random.key(seed))[0]) for seed in (0, 0, 1)
  )
  assert first == again != other


def test_loss_and_accuracy_are_means_over_tokens():
  model, p, tokens = make_network(layers=1)
  label = np.random.default_rng(2).integers(0, VOCABULARY, tokens.shape)
  logits = np.asarray(model.apply({'params': p}, tokens), np.float64)
  chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  found = np.take_along_axis(chances, label[..., None], axis=-1)
  batch = {'image': tokens, 'label': label.astype(np.int32)}
  loss, (state, metrics) = jax.jit(make_language_loss(model))(
    p, {}, batch, jax.random.key(0)
  )
  assert state == {}
  assert float(loss) == pytest.approx(-np.log(found).mean(), rel=1e-5)
  accuracy = (logits.argmax(-1) == label).mean()
  assert 0 < accuracy < 1
  assert float(metrics['accuracy']) == pytest.approx(accuracy)


def test_padding_of_an_evaluation_counts_for_nothing():
  model, p, _ = make_network(layers=1)
  rng = np.random.default_rng(3)
  image, label = rng.integers(0, VOCABULARY, (2, 7, 5)).astype(np.int32)
  split = TokenSplit(image=image, label=label)
  workers = make_workers('pmap', {'data': 2})

  def score(batch_size):
    evaluator = Evaluator(
      make_language_counts(model),
      EvaluationInput(split, workers, batch_size=batch_size),
      workers,
      scores=language_scores,
    )
    return evaluator(
      workers.place(p, REPLICATED), workers.place({}, PER_WORKER)
    )

  expected, (_, metrics) = jax.jit(make_language_loss(model))(
    p, {}, {'image': image, 'label': label}, jax.random.key(0)
  )
  for batch_size in (4, 50):
    scores = score(batch_size)
    assert scores['loss'] == pytest.approx(float(expected), rel=1e-5)
    assert scores['accuracy'] == pytest.approx(float(metrics['accuracy']))
    assert scores['perplexity'] == pytest.approx(math.exp(float(expected)))


def test_perplexity_of_a_uniform_model_is_the_size_of_the_vocabulary():
  model, p, tokens = make_network()
  zero = jax.tree.map(jnp.zeros_like, p)
  counts = jax.jit(make_language_counts(model))(
    zero, {}, {'image': tokens, 'label': tokens, 'weight': jnp.ones(3)}
  )
  assert float(counts['examples']) == tokens.size
  scores = language_scores({k: float(v) for k, v in counts.items()})
  assert scores['perplexity'] == pytest.approx(VOCABULARY, rel=1e-5)


def test_perplexity_overflows_to_infinity():
  scores = language_scores({'correct': 0.0, 'loss': 2000.0, 'examples': 2.0})
  assert scores['perplexity'] == math.inf


@pytest.fixture
def corpus(tmp_path):
  # After 'one' comes 'two', and so on: easily learned.
  words = ['one', 'two', 'three', 'four', 'five', 'six', 'seven']
  folder = tmp_path / 'corpus'
  folder.mkdir()
  for name, lines in (('train', 60), ('valid', 8), ('test', 11)):
    (folder / f'{name}.txt').write_text(f'{" ".join(words)}\n' * lines)
  return folder


def make_config(corpus, **fields):
  base = {
    'workers': 2,
    'batch_size': 8,
    'eval_batch_size': 6,
    'dataset': {'name': 'brown', 'data_dir': str(corpus), 'window': 6},
    'model': {'name': 'lstm', 'hidden': 16},
    'optimizer': {'name': 'sgd', 'learning_rate': 2.0, 'clip_norm': 0.5},
    'stages': {'train': {'epochs': 6.0}},
    'log_every': 5,
  }
  return {**base, **fields}


def test_a_run_from_text_to_report(corpus, tmp_path):
  report = run(make_config(corpus), str(tmp_path / 'w'))
  saved = json.loads((tmp_path / 'w' / 'report.json').read_text())
  perplexity = saved['perplexity']
  assert perplexity['baseline'] == perplexity['final']
  assert perplexity['final'] == math.exp(saved['details']['eval_loss'])
  # Of nine tokens, knowing nothing.
  assert 1 < perplexity['final'] < 3
  assert 0.5 < saved['accuracy']['final'] <= 1
  # 60 and 11 lines of 8 tokens.
  assert saved['details']['train_examples'] == (60 * 8 - 1) // 6
  assert saved['details']['eval_examples'] == (11 * 8 - 1) // 6
  assert saved['details']['evaluated_on'] == 'test'
  assert saved['network']['sent_bytes_per_step'] > 0
  assert 'memory' not in saved
  text = (tmp_path / 'w' / 'report.md').read_text()
  assert f'| perplexity | {report.perplexity["final"]:.2f} |' in text
  lines = (tmp_path / 'w' / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(lines[-1])['eval_perplexity'] == perplexity['final']


def test_any_folder_is_a_text_where_the_source_says_so(corpus, tmp_path):
  config = make_config(corpus, stages={'train': {'steps': 1}})
  config['dataset'] |= {'name': 'mine', 'source': 'text', 'validation': 1}
  report = run(config, str(tmp_path / 'w'))
  assert report.details['eval_examples'] == (8 * 8 - 1) // 6
  assert report.details['evaluated_on'] == 'validation'


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'model': {'name': 'lenet5'}},
      "model.name='lenet5' is unknown; known: lstm",
    ),
    ({'augment': {'flip': True}}, r'augment\.flip=True is for images'),
    (
      {'stages': {'train': {'steps': 1, 'files': (('P', 'fixed'),)}}},
      r"files=\[\('P', 'fixed'\)\] cannot be measured in language modeling",
    ),
    ({'batch_size': 80}, 'batch_size=80 exceeds the 79 training examples'),
  ],
)
def test_bad_input_leaves_nothing_behind(corpus, tmp_path, fields, message):
  with pytest.raises(InputError, match=message):
    run(make_config(corpus, **fields), str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'hidden': 0}, r'model\.hidden=0 is less than 1'),
    ({'layers': 0}, r'model\.layers=0 is less than 1'),
    ({'dropout': 1.0}, r'model\.dropout=1\.0 is not in \[0, 1\)'),
    ({'hiden': 3}, "model.hiden is no argument .*'hidden'"),
  ],
)
def test_bad_arguments_of_the_network(arguments, message):
  with pytest.raises(ValueError, match=message):
    make_language_model({'name': 'lstm', **arguments}, vocabulary=5)


def test_a_language_model_classifies_no_images():
  with pytest.raises(ValueError, match=r"model\.name='lstm' is unknown"):
    make_model({'name': 'lstm'}, num_classes=10)
