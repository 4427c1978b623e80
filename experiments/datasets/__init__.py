"""The data of the experiments.

MNIST is bundled; every other set is read from the folders of
tensorflow-datasets, which `experiments.datasets.prepare` makes of the original
files of three sets without network and without TensorFlow. Text is read from
plain files.
"""

from experiments.datasets.loading import Dataset, load
from experiments.datasets.order import epoch_order, held_out, step_indices
from experiments.datasets.splits import Split, TokenSplit
from experiments.datasets.streamed import StreamedSplit
from experiments.datasets.text import Corpus, is_text, load_corpus

__all__ = [
  'Corpus',
  'Dataset',
  'Split',
  'StreamedSplit',
  'TokenSplit',
  'epoch_order',
  'held_out',
  'is_text',
  'load',
  'load_corpus',
  'step_indices',
]
