"""What a search may decide of a network: channels, bits, or both.

Each has a module that prices the decisions and makes their options. All give a
`SearchSubject`; whatever searches, measures and writes knows no more.
"""

from collections.abc import Mapping

from bandwidth.base import check_name
from experiments.policy.kinds import bits, channels, joint
from experiments.policy.kinds.kind import Kind

KINDS: Mapping[str, Kind] = {
  'channels': channels.KIND,
  'bits': bits.KIND,
  'joint': joint.KIND,
}


def kind_of(name: str) -> Kind:
  """Returns a kind of decisions by name.

  Raises:
    ValueError: it is unknown.
  """
  check_name('search.decisions', name, KINDS)
  return KINDS[name]
