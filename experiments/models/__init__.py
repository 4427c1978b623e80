"""Networks by name."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from bandwidth.base import make_named
from experiments.models.efficientnet_lite import EfficientNetLite
from experiments.models.lenet import LeNet5, LeNet300
from experiments.models.lstm import LSTM
from experiments.models.mobilenet import MobileNetV1, MobileNetV2
from experiments.models.plain import PlainCifar
from experiments.models.resnet import ResNetCifar
from experiments.models.resnet_imagenet import ResNetImagenet

MODELS = {
  'efficientnet_lite0': EfficientNetLite,
  'lenet300': LeNet300,
  'lenet5': LeNet5,
  'mobilenet_v1': MobileNetV1,
  # A quarter of the width.
  'mobilenet_v1_cifar': partial(
    MobileNetV1,
    variant='cifar',
    channels=(8, 16, 32, 32, 64, 64, *(128,) * 6, 256, 256),
  ),
  'mobilenet_v2': MobileNetV2,
  # Half of the width.
  'mobilenet_v2_cifar': partial(
    MobileNetV2,
    variant='cifar',
    stem=16,
    channels=(8, 16, 16, 32, 48, 80, 160),
    head=640,
  ),
  'plain20': PlainCifar,
  'resnet20': partial(ResNetCifar, depth=20),
  'resnet56': partial(ResNetCifar, depth=56),
  'resnet110': partial(ResNetCifar, depth=110),
  'resnet50': ResNetImagenet,
}

LANGUAGE_MODELS = {'lstm': LSTM}

OWN = {'parent': None, 'name': None}
"""Arguments of every module that are not for users."""


def make_model(config: Mapping[str, Any], *, num_classes: int) -> nn.Module:
  """Builds a network that classifies images.

  Args:
    config: `name`, and arguments of the network's constructor.
    num_classes: number of classes, a logit each.

  Raises:
    ValueError: the name is unknown, or the network has no such argument.
  """
  return _make(MODELS, config, num_classes=num_classes)


def make_language_model(
  config: Mapping[str, Any], *, vocabulary: int
) -> nn.Module:
  """Builds a network that predicts which of `vocabulary` tokens is next."""
  return _make(LANGUAGE_MODELS, config, vocabulary=vocabulary)


def _make(
  models: Mapping[str, Any], config: Mapping[str, Any], **sizes: int
) -> nn.Module:
  arguments = dict(config)
  name = arguments.pop('name', None)
  return make_named('model', name, models, arguments, **OWN, **sizes)
