"""EfficientNet-Lite0 on CIFAR-10, enlarged: fidelity to the original."""

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.efficientnet_lite import (
  EfficientNetLite,
  efficientnet_variables,
)

Arrays = Mapping[str, np.ndarray]

_RECORD = 3073
_BATCH = 50
_STRENGTH = 0.01


class Pictures(NamedTuple):
  """Images uint8 [N, 32, 32, 3] and labels uint8 [N]."""

  images: np.ndarray
  labels: np.ndarray


def read_pictures(folder: pathlib.Path, name: str, count: int) -> Pictures:
  """Reads the first images of a file of CIFAR-10's binary version.

  Raises:
    ValueError: the file is not there, or has fewer.
  """
  path = folder / name
  if not path.is_file():
    raise ValueError(f'cifar10={str(folder)!r} has no {name}')
  records = np.fromfile(path, np.uint8, count * _RECORD).reshape(-1, _RECORD)
  if len(records) < count:
    raise ValueError(f'{name} has {len(records)} images, not {count}')
  planes = records[:, 1:].reshape(-1, 3, 32, 32)
  return Pictures(planes.transpose(0, 2, 3, 1), records[:, 0])


class PictureFidelity:
  """Compares the original's classes, and a probe on the original's features.

  The probe is a logistic regression of the ten classes on pooled features,
  fitted once, to the original's; other weights must serve it as they are.
  """

  def __init__(self, arrays: Arrays, folder: pathlib.Path, **sizes: int):
    """Runs the original.

    Args:
      arrays: of the published file.
      folder: of the binary version of CIFAR-10.
      **sizes: `train` and `examples`, images of the probe and of the test;
        `pixels`, which 32 divides.
    """
    train = read_pictures(folder, 'data_batch_1.bin', sizes['train'])
    self._test = read_pictures(folder, 'test_batch.bin', sizes['examples'])
    self._forward = _make_forward(sizes['pixels'])
    variables = efficientnet_variables(arrays)
    features, _ = self._forward(variables, train.images)
    self._center, self._spread = features.mean(0), features.std(0) + 1e-6
    self._probe = _logistic_regression().fit(
      self._standard(features), train.labels
    )
    _, logits = self._forward(variables, self._test.images)
    self._classes = logits.argmax(axis=1)

  def _standard(self, features: np.ndarray) -> np.ndarray:
    return (features - self._center) / self._spread

  def __call__(self, arrays: Arrays) -> dict[str, float]:
    """Returns fractions of the test images."""
    variables = efficientnet_variables(arrays)
    features, logits = self._forward(variables, self._test.images)
    guesses = self._probe.predict(self._standard(features))
    agreement = (logits.argmax(axis=1) == self._classes).mean()
    return {
      'same_top1': round(float(agreement), 4),
      'probe_accuracy': round(float((guesses == self._test.labels).mean()), 4),
    }


def _logistic_regression() -> Any:
  try:
    models = importlib.import_module('sklearn.linear_model')
  except ImportError:
    raise ValueError('the probe needs scikit-learn') from None
  return models.LogisticRegression(C=_STRENGTH, max_iter=1000)


def enlarged(images: jax.Array | np.ndarray, *, pixels: int) -> jax.Array:
  """Returns what the network reads, float32 [N, pixels, pixels, 3]."""
  shape = (len(images), pixels, pixels, 3)
  large = jax.image.resize(jnp.asarray(images, jnp.float32), shape, 'bicubic')
  return (jnp.clip(large, 0, 255) - 127) / 128


def _make_forward(pixels: int) -> Any:
  """Returns (variables, images) -> (features, logits), NumPy."""
  model = EfficientNetLite()

  def both(model: EfficientNetLite, x: jax.Array) -> Any:
    features = model.features(x)
    return features, model.classifier(features)

  @jax.jit
  def forward(variables: Any, images: jax.Array) -> Any:
    return model.apply(variables, enlarged(images, pixels=pixels), method=both)

  def run(variables: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = [
      jax.device_get(forward(variables, images[begin : begin + _BATCH]))
      for begin in range(0, len(images), _BATCH)
    ]
    features, logits = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(logits)

  return run
