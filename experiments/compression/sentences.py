"""MiniLM on sentences of the Brown corpus: fidelity, and what errors cost."""

import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from bandwidth import tree
from bandwidth.quantization import Sensitivity
from experiments.models.minilm import MiniLM, minilm_variables, source_of

Arrays = Mapping[str, np.ndarray]

_WORD, _POSITION = 'word', 'position'
_LONGEST = 64
_SHORTEST = 4
_BATCH = 64
_CALIBRATION_BATCH = 16
# A word piece counts as if it had been seen so many times more.
_UNSEEN = 30.0
# Squared gradients of a rare word piece lean on the mean, as if so many more.
_PRIOR = 3.0


class Batch(NamedTuple):
  """Sentences of about one length."""

  tokens: np.ndarray  # word pieces, int32 [N, T]
  mask: np.ndarray  # bool [N, T], False at padding


def read_sentences(
  brown: pathlib.Path, split: str, count: int | None
) -> list[str]:
  """Draws sentences of at least four tokens, always the same ones.

  Args:
    brown: folder of `train.txt`, `valid.txt` and `test.txt`.
    split: one of the three.
    count: how many; None: all.

  Raises:
    ValueError: the file is not there, or has fewer.
  """
  path = brown / f'{split}.txt'
  if not path.is_file():
    raise ValueError(f'brown={str(brown)!r} has no {split}.txt')
  lines = path.read_text('utf-8').splitlines()
  long = [line for line in lines if len(line.split()) >= _SHORTEST]
  if count is None:
    return long
  if count > len(long):
    raise ValueError(f'examples={count}: {path.name} has {len(long)} sentences')
  picked = np.random.default_rng(0).choice(len(long), count, replace=False)
  return [long[i] for i in picked]


def make_tokenizer(path: pathlib.Path) -> Tokenizer:
  """Reads a tokenizer that cuts at 64 word pieces and does not pad."""
  if not path.is_file():
    raise ValueError(f'tokenizer={str(path)!r} is not there')
  tokenizer = Tokenizer.from_file(str(path))
  tokenizer.no_padding()
  tokenizer.enable_truncation(_LONGEST)
  return tokenizer


def make_batches(
  tokenizer: Tokenizer, sentences: Sequence[str], size: int
) -> list[Batch]:
  """Batches sentences by length, padded to multiples of 32 word pieces."""
  rows = sorted(
    (encoded.ids for encoded in tokenizer.encode_batch(list(sentences))),
    key=len,
  )
  batches = []
  for begin in range(0, len(rows), size):
    part = rows[begin : begin + size]
    tokens = np.zeros((len(part), -(-len(part[-1]) // 32) * 32), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, ids in enumerate(part):
      tokens[i, : len(ids)] = ids
      mask[i, : len(ids)] = True
    batches.append(Batch(tokens, mask))
  return batches


class SentenceFidelity:
  """Compares embeddings of the original and of other weights."""

  def __init__(
    self, arrays: Arrays, tokenizer: Tokenizer, sentences: Sequence[str]
  ):
    self._batches = make_batches(tokenizer, sentences, _BATCH)
    self._apply = jax.jit(MiniLM().apply)
    self._original = self._embed(arrays)
    self._neighbors = _nearest(self._original)

  def _embed(self, arrays: Arrays) -> np.ndarray:
    variables = minilm_variables(arrays)
    return np.concatenate(
      [np.asarray(self._apply(variables, *batch)) for batch in self._batches]
    )

  def __call__(self, arrays: Arrays) -> dict[str, float]:
    """Returns cosines, and how often the nearest other sentence stays it."""
    embedded = self._embed(arrays)
    cosines = (embedded * self._original).sum(axis=1)
    same = _nearest(embedded) == self._neighbors
    return {
      'cosine_mean': round(float(cosines.mean()), 5),
      'cosine_least': round(float(cosines.min()), 4),
      'same_neighbor': round(float(same.mean()), 4),
    }


def _nearest(embedded: np.ndarray) -> np.ndarray:
  similar = embedded @ embedded.T
  np.fill_diagonal(similar, -1)
  return similar.argmax(axis=1)


def calibrate(
  arrays: Arrays, tokenizer: Tokenizer, corpus: Sequence[str], count: int
) -> dict[str, Sensitivity]:
  """Returns what errors of each matrix cost in squared distance of embeddings.

  For a random direction v of the embedding the gradient of vᵀf by a matrix,
  squared, is in the mean its Gauss-Newton matrix. A sentence's gradient is
  S = Σ_t g_t x_tᵀ; the mean of SᵀS is the Hessian that rows share, and rows
  differ by the mean of |S_i|².

  Args:
    arrays: of the published file.
    tokenizer: that of the network.
    corpus: sentences; all count as to how frequent a word piece is.
    count: how many of them are differentiated.

  Returns:
    By name of array. Word pieces that were not seen count as rare ones.
  """
  picked = np.random.default_rng(1).choice(len(corpus), count, replace=False)
  sentences = [corpus[i] for i in picked]
  variables = minilm_variables(arrays)
  outputs = {
    name.removesuffix('/kernel'): array.shape[1]
    for name, array in _kernels(variables['params'])
  }
  moments_of = jax.jit(partial(_batch_moments, outputs=outputs))
  total: Any = None
  pieces = np.zeros(MiniLM().vocabulary), np.zeros(MiniLM().vocabulary)
  for i, batch in enumerate(
    make_batches(tokenizer, sentences, _CALIBRATION_BATCH)
  ):
    key = jax.random.fold_in(jax.random.key(0), i)
    moments, gradient = moments_of(variables, batch, key)
    np.add.at(pieces[0], batch.tokens[batch.mask], gradient[batch.mask])
    np.add.at(pieces[1], batch.tokens[batch.mask], 1)
    add = jax.tree.map(lambda a: np.asarray(a, np.float64), moments)
    total = add if total is None else jax.tree.map(np.add, total, add)
  found = {}
  for name in outputs:
    hessian, rows = (part / count for part in total[name])
    mean = rows.mean()
    found[source_of(f'{name}/kernel')[0]] = Sensitivity(
      hessian / rows.size, (rows / mean + 0.05) / 1.05
    )
  width = MiniLM().width
  shape = total[_WORD] * width / np.trace(total[_WORD])
  words = _word_rows(pieces, tokenizer, corpus) / width
  positions = np.full(MiniLM().positions, pieces[0].sum() / count / width)
  for name, rows in ((_WORD, words), (_POSITION, positions / _LONGEST)):
    source = source_of(f'{name}/embedding')[0]
    found[source] = Sensitivity(shape, rows, by_row=True)
  return found


def _word_rows(
  pieces: tuple[np.ndarray, np.ndarray],
  tokenizer: Tokenizer,
  corpus: Sequence[str],
) -> np.ndarray:
  """Squared gradient that a word piece gets in a sentence, in the mean."""
  gradients, seen = pieces
  mean = gradients.sum() / seen.sum()
  each = (gradients + _PRIOR * mean) / (seen + _PRIOR)
  counts = np.zeros(seen.size)
  for encoded in tokenizer.encode_batch(list(corpus)):
    np.add.at(counts, encoded.ids, 1)
  return each * (counts + _UNSEEN) / len(corpus)


def _kernels(params: Any) -> list[tuple[str, Any]]:
  return [(n, a) for n, a in tree.named_leaves(params) if n.endswith('/kernel')]


def _batch_moments(
  variables: Any, batch: Batch, key: jax.Array, *, outputs: Mapping[str, int]
) -> tuple[dict[str, Any], jax.Array]:
  """Sums over sentences of (SᵀS, |S_i|²), and each word's squared gradient."""
  widths = {**outputs, _WORD: MiniLM().width}
  nudges = {
    name: jnp.zeros((*batch.tokens.shape, width))
    for name, width in widths.items()
  }
  inputs: dict[str, jax.Array] = {}

  def listen(apply: Any, args: Any, kwargs: Any, context: Any) -> Any:
    name = '/'.join(context.module.path)
    result = apply(*args, **kwargs)
    if context.method_name != '__call__' or name not in nudges:
      return result
    inputs[name] = args[0]
    return result + nudged[name]

  nudged: dict[str, jax.Array] = {}

  def value(at: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
    nudged.update(at)
    with nn.intercept_methods(listen):
      embedded: Any = MiniLM().apply(variables, batch.tokens, batch.mask)
    direction = jax.random.normal(key, embedded.shape)
    return (embedded * direction).sum(), dict(inputs)

  gradients, seen = jax.grad(value, has_aux=True)(nudges)
  moments: dict[str, Any] = {}
  for name in outputs:
    s = jnp.einsum('nti,nto->nio', seen[name], gradients[name])
    hessian = jnp.einsum('nio,njo->ij', s, s)
    moments[name] = (hessian, jnp.square(s).sum(axis=(0, 1)))
  words = gradients[_WORD]
  moments[_WORD] = jnp.einsum('nti,ntj->ij', words, words)
  return moments, jnp.square(words).sum(axis=-1)
