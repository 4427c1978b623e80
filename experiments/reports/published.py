"""Published results of model compression on the two LeNets, as data.

What a ratio counts differs from paper to paper: the bytes of a file that can be
decoded, the weights that are not zero, or something between. Only results of
one accounting may stand on one axis, see `Accounting`. Some were read in
another paper's table; `read_in` names it.
"""

import enum
from typing import NamedTuple


class Accounting(enum.Enum):
  """What the ratio and the bytes of a published result count."""

  CODED = 'coded bytes'
  CODED_NO_BIASES = 'coded bytes without biases'
  HAN_FORMAT = 'estimate in the format of Deep Compression'
  NONZEROS = 'weights that are not zero'
  NONZERO_BITS = 'weights that are not zero, and their bits'
  UNKNOWN = 'not known'

  @property
  def is_coded(self) -> bool:
    """Whether the result may stand beside the sizes of files."""
    return self in (Accounting.CODED, Accounting.CODED_NO_BIASES)


class PublishedPoint(NamedTuple):
  """One compressed network of a paper."""

  network: str  # 'lenet300' or 'lenet5', as in `experiments.models`
  method: str  # what the paper calls it
  ratio: float  # as printed, of the dense float32 network
  file_bytes: int | None  # as printed, in bytes; None where nothing is printed
  error_percent: float  # test error of the compressed network
  accounting: Accounting  # what the ratio and the bytes count
  source: str  # the paper, with its arXiv number
  # Test error of the paper's dense network; None where it is not known.
  reference_percent: float | None = None
  read_in: str = ''  # where the numbers were read, if not in the paper


_HAN = 'Han, Mao & Dally 2016, arXiv 1510.00149, table 1'
_DNS = 'Guo, Yao & Chen 2016, arXiv 1608.04493'
_SWS = 'Ullrich, Meeds & Welling 2017, arXiv 1702.04008'
_VD = 'Molchanov, Ashukha & Vetrov 2017, arXiv 1701.05369'
_BAYES = 'Louizos, Ullrich & Welling 2017, arXiv 1705.08665'
_BLOOM = 'Reagen et al. 2018, arXiv 1711.04686'
_MIRACLE = 'Havasi, Peharz & Hernandez-Lobato 2019, arXiv 1810.00440'
_EPR = 'Oktay, Balle, Singh & Shrivastava 2020, arXiv 1906.06624'

_VD_TABLE = 'the table of SparseVD, arXiv 1701.05369'
_MIRACLE_TABLE = 'the table of MIRACLE, arXiv 1810.00440'
_REPO = "the authors' repository"
_TFC = 'the documentation of TensorFlow'

_CODED = Accounting.CODED
_NO_BIASES = Accounting.CODED_NO_BIASES
_HAN_FORMAT = Accounting.HAN_FORMAT
_NONZEROS = Accounting.NONZEROS
_BITS = Accounting.NONZERO_BITS
_P = PublishedPoint

# A kilobyte is 1000 bytes to Deep Compression and EPR and 1024 to MIRACLE's
# table, as their ratios show.
PUBLISHED: tuple[PublishedPoint, ...] = (
  _P('lenet300', 'Deep Compression', 40, 27_000, 1.58, _NO_BIASES, _HAN, 1.64),
  _P('lenet300', 'DNS', 56, None, 1.99, _NONZEROS, _DNS, None, _VD_TABLE),
  _P('lenet300', 'SWS', 23, None, 1.94, _NONZEROS, _SWS, None, _VD_TABLE),
  _P('lenet300', 'SparseVD', 68, None, 1.92, _NONZEROS, _VD),
  _P('lenet300', 'EPR', 124, 8_560, 1.9, _CODED, _EPR, 1.6, _TFC),
  _P('lenet5', 'Deep Compression', 39, 44_000, 0.74, _NO_BIASES, _HAN, 0.80),
  _P('lenet5', 'DNS', 111, None, 0.91, _NONZEROS, _DNS, None, _VD_TABLE),
  _P('lenet5', 'SWS', 200, None, 0.97, _NONZEROS, _SWS, None, _VD_TABLE),
  _P('lenet5', 'SparseVD', 280, None, 0.75, _NONZEROS, _VD),
  _P('lenet5', 'Bayesian GNJ', 108, None, 1.0, _NONZEROS, _BAYES, None, _REPO),
  _P('lenet5', 'Bayesian GHS', 156, None, 1.0, _NONZEROS, _BAYES, None, _REPO),
  _P('lenet5', 'Bayesian GNJ', 361, None, 1.0, _BITS, _BAYES, None, _REPO),
  _P('lenet5', 'Bayesian GHS', 419, None, 1.0, _BITS, _BAYES, None, _REPO),
  _P(
    'lenet5', 'Bayesian Compression', 771, 2_355, 1.0, _HAN_FORMAT, _BAYES,
    None, _MIRACLE_TABLE,
  ),
  _P(
    'lenet5', 'Weightless', 382, 4_628, 1.0, Accounting.UNKNOWN, _BLOOM,
    None, _MIRACLE_TABLE,
  ),
  _P('lenet5', 'EPR', 606, 2_840, 1.0, _CODED, _EPR, 0.7, _TFC),
  _P('lenet5', 'MIRACLE', 555, 3_103, 0.69, _CODED, _MIRACLE),
  _P('lenet5', 'MIRACLE', 1110, 1_556, 0.96, _CODED, _MIRACLE),
)  # fmt: skip

DEEP_COMPRESSION_STAGES: dict[str, dict[str, float]] = {
  'lenet300': {'P': 12, 'P+Q': 32, 'P+Q+H': 40},
  'lenet5': {'P': 12, 'P+Q': 33, 'P+Q+H': 39},
}
"""Ratios after each stage of Deep Compression, arXiv 1510.00149, tables 2
and 3: P pruned, Q weights shared, H Huffman coded. Biases are not counted."""


def published(network: str, *, coded: bool) -> list[PublishedPoint]:
  """Returns the results on one network, of one kind of accounting.

  Args:
    network: name in `experiments.models`, 'lenet300' or 'lenet5'.
    coded: those that may stand beside sizes of files, or all others.

  Raises:
    ValueError: there are no results on the network.

  >>> [p.method for p in published('lenet300', coded=True)]
  ['Deep Compression', 'EPR']
  """
  networks = sorted({point.network for point in PUBLISHED})
  if network not in networks:
    raise ValueError(f'network={network!r} is none of {", ".join(networks)}')
  return [
    point
    for point in PUBLISHED
    if point.network == network and point.accounting.is_coded == coded
  ]
