"""One split of a TFDS data set on disk, decoded record by record."""

from pathlib import Path
from typing import Any

from experiments.datasets import images
from experiments.datasets.splits import Example, ImageShape


class TfdsSplit:
  """Examples at random access, read through TFDS's own data source.

  Args:
    builder: TFDS builder of the set, in ArrayRecord files.
    name: of the split, such as 'train'.
    shape: height, width and channels of the images given out.
    fit: whether images of another size are fitted to `shape`; where false, one
      is an error.

  Raises:
    ValueError: a file of the split is missing, truncated or altered.
  """

  def __init__(
    self, builder: Any, name: str, *, shape: ImageShape, fit: bool
  ) -> None:
    import tensorflow_datasets as tfds

    features = builder.info.features
    self.name, self._shape, self._fit = name, shape, fit
    self._num_classes = features['label'].num_classes
    # A set's other features are neither needed nor worth decoding.
    self._features = tfds.features.FeaturesDict(
      {key: features[key] for key in ('image', 'label')}
    )
    self._decoders = {'image': tfds.decode.SkipDecoding()}
    self._shards = builder.info.splits[name].file_instructions
    for shard in self._shards:
      _check_shard(shard.filename, shard.examples_in_shard)
    self._records = builder.as_data_source(
      name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )

  @property
  def image_shape(self) -> ImageShape:
    """The shape of every image."""
    return self._shape

  @property
  def fit(self) -> bool:
    """Whether stored images may be of other sizes."""
    return self._fit

  @property
  def files(self) -> list[Path]:
    """The files that hold the records."""
    return [Path(shard.filename) for shard in self._shards]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Example:
    fields = self._fields(index)
    label = int(fields['label'])
    try:
      if not 0 <= label < self._num_classes:
        raise ValueError(f'label {label} of {self._num_classes} classes')
      image = images.decode_image(
        fields['image'], shape=self._shape, fit=self._fit
      )
    except ValueError as error:
      raise ValueError(f'{self._place(index)}: {error}') from None
    return Example(image, label)

  def labeled(self) -> bool:
    """Whether the split's labels are known; TFDS writes -1 where not."""
    return int(self._fields(0)['label']) >= 0

  def _fields(self, index: int) -> Any:
    """Returns the `image` as it is encoded and the `label` of a record."""
    try:
      return self._features.deserialize_example_np(
        self._records[index], decoders=self._decoders
      )
    except Exception as error:  # Of the reader, of protobuf or of TFDS.
      raise ValueError(
        f'{self._place(index)} is altered: delete the folder and prepare it '
        f'anew ({_one_line(error)})'
      ) from None

  def _place(self, index: int) -> str:
    for shard in self._shards:
      if index < shard.take:
        return f'{shard.filename}, record {shard.skip + index}'
      index -= shard.take
    return f'split {self.name}, record {index}'


def _check_shard(path: str, examples: int) -> None:
  """Raises ValueError unless a shard is whole, as far as its footer tells."""
  from array_record.python import array_record_module

  if not Path(path).exists():
    raise ValueError(
      f'{path} is missing: delete the folder and prepare it anew'
    )
  try:
    reader = array_record_module.ArrayRecordReader(path)
    found = reader.num_records()
    reader.close()
  except RuntimeError as error:
    raise ValueError(
      f'{path} is truncated or altered: delete the folder and prepare it anew '
      f'({_one_line(error)})'
    ) from None
  if found != examples:
    raise ValueError(
      f'{path} holds {found} records, and its dataset_info.json says {examples}'
    )


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())
