"""Text for language models: three files of sentences become windows of tokens.

A corpus is a folder with train.txt, valid.txt and test.txt: one sentence a
line, tokens separated by white space. The sentences of a file are joined into
one stream, each ended by `<eos>`, and the stream is cut into windows.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.datasets import tfds_sets
from experiments.datasets.splits import TokenSplit

END = '<eos>'
UNKNOWN = '<unk>'
TEXTS = ('brown',)
"""Names that mean text where `dataset.source` is 'auto'."""

_FILES = {'train': 'train.txt', 'validation': 'valid.txt', 'test': 'test.txt'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
  """A text, ready for training a language model."""

  name: str  # as it was asked for
  vocabulary: tuple[str, ...]  # the tokens in the order of their numbers
  train: TokenSplit  # the windows of train.txt
  # Windows of valid.txt, or None where they are not wanted.
  validation: TokenSplit | None
  test: TokenSplit  # the windows of test.txt


def is_text(*, name: str, source: str) -> bool:
  """Whether a config's data set is text: by its source, or else its name."""
  return source == 'text' or (source == 'auto' and name in TEXTS)


def load_corpus(
  *,
  name: str,
  data_dir: str = '',
  validation: int = 0,
  vocabulary: int = 10_000,
  window: int = 35,
) -> Corpus:
  """Loads a corpus.

  Args:
    name: of the corpus, a folder of `data_dir`.
    data_dir: folder of its three files, or one that holds that folder under
      the corpus's name; when empty, the environment's TFDS_DATA_DIR, or else
      ~/tensorflow_datasets.
    validation: whether valid.txt is wanted; any number but 0 says so.
    vocabulary: tokens to tell apart, `<eos>` and `<unk>` among them.
    window: tokens of a window, T.

  Raises:
    ValueError: an argument is out of range; a file is missing, no UTF-8, or
      too short for a single window.
  """
  for field, value, least in (
    ('validation', validation, 0),
    ('vocabulary', vocabulary, 3),
    ('window', window, 1),
  ):
    if value < least:
      raise ValueError(f'dataset.{field}={value} is less than {least}')
  folder = _folder(name, data_dir)
  names = [s for s in _FILES if s != 'validation' or validation]
  tokens = {split: _read(folder / _FILES[split]) for split in names}
  words = most_frequent(tokens['train'], vocabulary)
  numbers = {word: number for number, word in enumerate(words)}
  splits = {
    split: _split(
      folder / _FILES[split], encode(tokens[split], numbers), window
    )
    for split in names
  }
  return Corpus(
    name=name,
    vocabulary=words,
    train=splits['train'],
    validation=splits.get('validation'),
    test=splits['test'],
  )


def tokenize(lines: Iterable[str]) -> Iterator[str]:
  """Yields the tokens of sentences, `<eos>` after each; empty lines are none.

  >>> list(tokenize(['The jury said', '', 'no .']))
  ['The', 'jury', 'said', '<eos>', 'no', '.', '<eos>']
  """
  for line in lines:
    words = line.split()
    if words:
      yield from words
      yield END


def most_frequent(tokens: Sequence[str], size: int) -> tuple[str, ...]:
  """Returns a vocabulary: the most frequent tokens, of equals the first seen.

  Args:
    tokens: of the training text.
    size: tokens in the vocabulary at most. `<unk>`, counted among them, is
      number 0 and stands for all others, and for itself where the text has it.

  >>> most_frequent(['a', 'b', '<eos>', 'b', '<eos>'], 3)
  ('<unk>', 'b', '<eos>')
  """
  counts = collections.Counter(tokens)
  del counts[UNKNOWN]
  return (UNKNOWN, *(word for word, _ in counts.most_common(size - 1)))


def encode(tokens: Sequence[str], numbers: dict[str, int]) -> np.ndarray:
  """Returns the tokens as numbers, int32; unknown ones as that of `<unk>`."""
  unknown = numbers[UNKNOWN]
  found = (numbers.get(token, unknown) for token in tokens)
  return np.fromiter(found, np.int32, count=len(tokens))


def windows(stream: np.ndarray, window: int) -> TokenSplit:
  """Cuts a stream into windows, each with its successors as labels.

  Window n has tokens nT to nT + T - 1, and label t is the token after token t.
  The last tokens, fewer than a window, are dropped.

  Args:
    stream: tokens of a text, int32 [L].
    window: tokens of a window, T.

  >>> windows(np.arange(6, dtype=np.int32), 2).label
  array([[1, 2], [3, 4]], dtype=int32)
  """
  count = max(len(stream) - 1, 0) // window
  return TokenSplit(
    image=stream[: count * window].reshape(count, window),
    label=stream[1 : count * window + 1].reshape(count, window),
  )


def _split(path: Path, stream: np.ndarray, window: int) -> TokenSplit:
  split = windows(stream, window)
  if not len(split):
    raise ValueError(
      f'{path} has {len(stream)} tokens, too few for dataset.window={window}'
    )
  return split


def _read(path: Path) -> list[str]:
  try:
    with path.open(encoding='utf-8') as lines:
      return list(tokenize(lines))
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is no UTF-8 text: {error}') from None


def _folder(name: str, data_dir: str) -> Path:
  folder = tfds_sets.data_folder(data_dir)
  # What was given may be the corpus's own folder; the place of all sets is not.
  candidates = [folder / name, *([folder] if data_dir else [])]
  for candidate in candidates:
    if (candidate / _FILES['train']).exists():
      missing = [f for f in _FILES.values() if not (candidate / f).exists()]
      if missing:
        raise ValueError(f'{candidate} has no {", ".join(missing)}')
      return candidate
  raise ValueError(
    f'dataset.name={name!r} is not in {str(candidates[0])!r}: put its '
    f'{", ".join(_FILES.values())} there (a sentence a line, tokens separated '
    'by spaces), or give their folder as dataset.data_dir'
  )
