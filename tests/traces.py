"""How often JAX traced a function, for tests that it compiles once.

JAX's own count, `_cache_size`, is zero for every new function of a process that
has compiled 8,192 of them.
"""


class Counted:
  """A function that counts its calls: under `jax.jit`, its traces.

  Attributes:
    traces: how often `fn` was called.
  """

  def __init__(self, fn):
    self._fn = fn
    self.traces = 0

  def __call__(self, *args, **kwargs):
    """What `fn` gives."""
    self.traces += 1
    return self._fn(*args, **kwargs)
