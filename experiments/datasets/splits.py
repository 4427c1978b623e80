"""What a data set is to the training loop."""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

ImageShape = tuple[int, int, int]
"""Height, width and channels."""


class Example(NamedTuple):
  """One decoded example: `image` uint8 [H, W, C] and `label` int."""

  image: np.ndarray
  label: int


class Examples(Protocol):
  """Decoded examples at random access, read by several threads at once."""

  @property
  def image_shape(self) -> ImageShape:
    """The shape of every image."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """Examples held in memory."""

  image: np.ndarray  # uint8 [N, H, W, C], 0 to 255
  label: np.ndarray  # int32 [N], 0 to the number of classes less 1

  def __post_init__(self) -> None:
    image, label = self.image, self.label
    if image.dtype != np.uint8 or image.ndim != 4:
      raise ValueError(
        f'image is {image.dtype} {image.shape}, not uint8 [N, H, W, C]'
      )
    if label.dtype != np.int32 or label.shape != image.shape[:1]:
      raise ValueError(
        f'label is {label.dtype} {label.shape}, not int32 ({len(image)},)'
      )

  def __len__(self) -> int:
    return len(self.label)

  @property
  def image_shape(self) -> ImageShape:
    """The shape of every image."""
    height, width, channels = self.image.shape[1:]
    return height, width, channels

  def take(self, indices: np.ndarray) -> 'Split':
    """Returns a copy of the examples at `indices`, integer [M]."""
    return Split(image=self.image[indices], label=self.label[indices])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSplit(Split):
  """Windows of a text, held in memory.

  To the input a window is an example like an image.

  Attributes:
    image: int32 [N, T], tokens.
    label: int32 [N, T], the token that follows each.
  """

  def __post_init__(self) -> None:
    for name, array in (('image', self.image), ('label', self.label)):
      if array.dtype != np.int32 or array.ndim != 2:
        raise ValueError(
          f'{name} is {array.dtype} {array.shape}, not int32 [N, T]'
        )
    if self.image.shape != self.label.shape:
      raise ValueError(
        f'label is {self.label.shape}, and image {self.image.shape}'
      )

  @property
  def window(self) -> int:
    """Tokens of a window, T."""
    return self.image.shape[1]

  def take(self, indices: np.ndarray) -> 'TokenSplit':
    """Returns a copy of the windows at `indices`, integer [M]."""
    return TokenSplit(image=self.image[indices], label=self.label[indices])
