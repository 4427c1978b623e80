"""The data of the experiments.

MNIST is bundled; every other set is read from the folders of
tensorflow-datasets, which `experiments.datasets.prepare` makes of the original
files of three sets without network and without TensorFlow.
"""

from experiments.datasets.loading import Dataset, load
from experiments.datasets.order import epoch_order, held_out, step_indices
from experiments.datasets.splits import Split
from experiments.datasets.streamed import StreamedSplit

__all__ = [
  'Dataset',
  'Split',
  'StreamedSplit',
  'epoch_order',
  'held_out',
  'load',
  'step_indices',
]
