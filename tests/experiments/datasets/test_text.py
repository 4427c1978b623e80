import numpy as np
import pytest

from experiments.datasets import TokenSplit, load, load_corpus
from experiments.datasets.text import encode, most_frequent, tokenize, windows

TRAIN = 'a b a c\n\n  a\tb d .\nb <unk> <unk> <unk>\n'
VALID = 'a e a b\nc .\n'
TEST = 'b b b . a\n'
# a and b are three times in the training text, as is <eos>; c, d and . once.
FIVE = ('<unk>', 'a', 'b', '<eos>', 'c')


@pytest.fixture
def corpus(tmp_path):
  folder = tmp_path / 'sets' / 'brown'
  folder.mkdir(parents=True)
  for name, text in (('train', TRAIN), ('valid', VALID), ('test', TEST)):
    (folder / f'{name}.txt').write_text(text)
  return folder


def joined(split, words):
  """The stream that windows were cut out of, as words."""
  stream = [*split.image.ravel(), split.label.ravel()[-1]]
  return ' '.join(words[token] for token in stream)


def test_lines_end_and_empty_lines_are_none():
  tokens = ' '.join(tokenize(TRAIN.splitlines()))
  assert tokens == ('a b a c <eos> a b d . <eos> b <unk> <unk> <unk> <eos>')


def test_vocabulary_is_the_most_frequent_tokens_of_the_training_text(corpus):
  assert most_frequent(list(tokenize(TRAIN.splitlines())), 5) == FIVE
  loaded = load_corpus(
    name='brown', data_dir=str(corpus), vocabulary=5, window=2
  )
  assert loaded.vocabulary == FIVE
  # Fewer than wanted where the text has fewer.
  loaded = load_corpus(
    name='brown', data_dir=str(corpus), vocabulary=99, window=2
  )
  assert loaded.vocabulary == (*FIVE, 'd', '.')


def test_tokens_that_are_not_in_the_vocabulary_are_unknown():
  numbers = {word: number for number, word in enumerate(FIVE)}
  found = encode(['a', 'zebra', '<unk>', 'c'], numbers)
  assert found.dtype == np.int32
  assert found.tolist() == [1, 0, 0, 4]


@pytest.mark.parametrize('length', [0, 1, 3, 4, 6, 7, 8])
def test_windows_tile_the_stream_and_labels_are_one_ahead(length):
  stream = np.arange(10, 10 + length, dtype=np.int32)
  split = windows(stream, 3)
  # As many as there is a label for each token.
  assert len(split) == max(length - 1, 0) // 3
  np.testing.assert_array_equal(split.label, split.image + 1)
  flat = split.image.ravel()
  np.testing.assert_array_equal(flat, stream[: len(flat)])


def test_splits_of_a_corpus(corpus):
  loaded = load_corpus(
    name='brown', data_dir=str(corpus), validation=1, vocabulary=5, window=2
  )
  assert joined(loaded.train, FIVE) == (
    'a b a c <eos> a b <unk> <unk> <eos> b <unk> <unk> <unk> <eos>'
  )
  # Without their last token, for which no whole window is left.
  assert joined(loaded.validation, FIVE) == 'a <unk> a b <eos> c <unk>'
  assert joined(loaded.test, FIVE) == 'b b b <unk> a'
  for split in (loaded.train, loaded.validation, loaded.test):
    assert split.window == 2
    assert split.image.dtype == split.label.dtype == np.int32
    assert split.take(np.array([1])).image.tolist() == [split.image[1].tolist()]


def test_validation_is_read_only_where_it_is_wanted(corpus):
  (corpus / 'valid.txt').write_bytes(b'\xff')
  arguments = {'name': 'brown', 'data_dir': str(corpus), 'window': 2}
  assert load_corpus(**arguments).validation is None
  with pytest.raises(ValueError, match=r'valid\.txt is no UTF-8 text'):
    load_corpus(**arguments, validation=1)


def test_where_a_corpus_is_looked_for(corpus, monkeypatch):
  for folder in (corpus, corpus.parent):
    loaded = load_corpus(name='brown', data_dir=str(folder), window=2)
    assert len(loaded.train) == 7
  monkeypatch.setenv('TFDS_DATA_DIR', str(corpus.parent))
  assert len(load_corpus(name='brown', window=2).train) == 7
  with pytest.raises(ValueError, match=r"'ptb' is not in .*ptb'.*data_dir"):
    load_corpus(name='ptb')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'validation': -1}, r'dataset\.validation=-1 is less than 0'),
    ({'vocabulary': 2}, r'dataset\.vocabulary=2 is less than 3'),
    ({'window': 0}, r'dataset\.window=0 is less than 1'),
    ({'window': 9}, r'test\.txt has 6 tokens, too few .*window=9'),
    ({'data_dir': '/nowhere'}, r"'brown' is not in '/nowhere/brown': put its"),
  ],
)
def test_bad_arguments(corpus, arguments, message):
  with pytest.raises(ValueError, match=message) as error:
    load_corpus(**{'name': 'brown', 'data_dir': str(corpus)} | arguments)
  assert '\n' not in str(error.value)


def test_a_missing_file_is_named(corpus):
  (corpus / 'test.txt').unlink()
  with pytest.raises(ValueError, match=r'has no test\.txt'):
    load_corpus(name='brown', data_dir=str(corpus))


def test_text_is_no_set_of_images():
  for source in ('auto', 'text'):
    with pytest.raises(ValueError, match=r"'brown' is text, no image"):
      load(name='brown', source=source)


@pytest.mark.parametrize(
  ('image', 'label', 'message'),
  [
    (np.zeros((2, 3), np.int64), np.zeros((2, 3), np.int32), 'image is int64'),
    (np.zeros((2, 3), np.int32), np.zeros(2, np.int32), r'label is int32 \(2,'),
    (np.zeros((2, 3), np.int32), np.zeros((2, 4), np.int32), r'is \(2, 4\)'),
  ],
)
def test_windows_have_one_label_a_token(image, label, message):
  with pytest.raises(ValueError, match=message):
    TokenSplit(image=image, label=label)
