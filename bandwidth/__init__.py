"""Deep learning that needs less bandwidth.

`bandwidth.pruning`, `bandwidth.quantization` and `bandwidth.coding` make models
small, down to the file; `bandwidth.collectives` averages gradients over
workers; `bandwidth.tree` names parameters; `bandwidth.report` says what was
measured.
"""

from bandwidth.version import __version__

__all__ = ['__version__']
