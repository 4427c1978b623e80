import pytest
from toy_sets import examples, small_set, write_set

from experiments.datasets.originals import ORIGINALS


@pytest.fixture
def toy(tmp_path):
  """A set of 23 training examples in two files, and 10 to test on."""
  image, label, train = examples(23)
  test_image, test_label, test = examples(10, seed=1)
  directory = write_set(
    tmp_path, splits={'train': train, 'test': test}, shards=2
  )
  return {
    'data_dir': tmp_path,
    'directory': directory,
    'train': (image, label),
    'test': (test_image, test_label),
  }


@pytest.fixture
def small_originals(tmp_path, monkeypatch):
  """Replaces the three sets by small ones; returns {name: (folder, splits)}."""
  made = {}
  for name in list(ORIGINALS):
    folder = tmp_path / 'originals' / name
    folder.mkdir(parents=True)
    entry, splits = small_set(name, folder)
    monkeypatch.setitem(ORIGINALS, name, entry)
    made[name] = (folder, splits)
  return made
