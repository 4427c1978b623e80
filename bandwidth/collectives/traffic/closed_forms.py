"""Bytes that a worker sends in one collective, in closed form."""


def all_reduce_bytes(payload: int, workers: int) -> int:
  """Returns 2 (P-1)/P times the payload, rounded up.

  Args:
    payload: bytes of the array that each worker has, and of the sum.
    workers: number of workers P, at least 1.

  >>> all_reduce_bytes(1000, 4)
  1500
  """
  return -(-2 * (workers - 1) * payload // workers)


def reduce_scatter_bytes(payload: int, workers: int) -> int:
  """Returns (P-1)/P times the payload, rounded up.

  Args:
    payload: bytes of the array that each worker has, and of which it keeps the
      sum of one P-th.
    workers: number of workers P, at least 1.
  """
  return -(-(workers - 1) * payload // workers)


def all_to_all_bytes(payload: int, workers: int) -> int:
  """Returns (P-1)/P times the payload, rounded up.

  Args:
    payload: bytes of the array that each worker has, one P-th for each worker,
      itself included.
    workers: number of workers P, at least 1.
  """
  return -(-(workers - 1) * payload // workers)


def all_gather_bytes(payload: int, workers: int) -> int:
  """Returns P-1 times the payload.

  Args:
    payload: bytes that each worker contributes, a P-th of the result.
    workers: number of workers P, at least 1.

  >>> all_gather_bytes(128, 8)
  896
  """
  return (workers - 1) * payload
