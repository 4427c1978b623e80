"""Network links of a chosen rate between processes on this machine.

Each process gets a mount, network and UTS namespace of its own: one interface,
`eth0`, with an address, a host name, and an `/etc/hosts` in which all of them
stand, for gloo binds the address that the host name resolves to. The other ends
of the veth pairs are ports of a bridge in a network namespace that nothing else
sees, so the host's interfaces, names and files stay as they are, and launches
don't meet. Both ends of a pair are shaped by a token bucket (`tc-tbf`): one
holds back what the process sends, the other what it receives.

The namespaces are those of holders, processes that wait for the end of their
input. However this process ends, the holders see it, and the kernel removes
namespaces, links and queues with the last process in them. Linux, and root.
"""

import contextlib
import ipaddress
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

UNSHAPED = 'unshaped'

_RATE = re.compile(r'(\d+(?:\.\d+)?)(kbit|mbit|gbit)', re.ASCII)
_UNITS = {'kbit': 10**3, 'mbit': 10**6, 'gbit': 10**9}
_LEAST, _MOST = 10**6, 40 * 10**9  # what a queue of 0.4 s can be set to
_TOOLS = ('hostname', 'ip', 'mount', 'nsenter', 'setpriv', 'tc', 'unshare')
_NETWORK = ipaddress.ip_network('10.77.0.0/16')
_MAX_PROCESSES = 1000  # a bridge has 1024 ports
_PORT = 29400  # nothing else listens in a namespace that has just been made
_COUNTERS = re.compile(r'^\s*eth0:\s*(\d+)(?:\s+\d+){7}\s+(\d+)', re.MULTILINE)
_SEGMENTS = 65536  # bytes that TCP hands to an interface at once, at most

_HOLD = 'echo ready; exec cat'
_BRIDGE = f"""
set -e
ip link set lo up
ip link add bridge type bridge
ip link set bridge up
{_HOLD}
"""
_MEMBER = f"""
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
ip link set lo up
{_HOLD}
"""


class Traffic(NamedTuple):
  """Bytes that an interface counted since it was made, frames included."""

  sent: int
  received: int


class Links(NamedTuple):
  """Processes of a network that exists until its context ends."""

  prefixes: list[list[str]]  # for each process, what to put before its command
  addresses: list[str]  # IP address of each process
  coordinator: str  # `host:port` in the namespace of process 0
  holders: list[int]  # process ids of the holders of the namespaces

  def traffic(self) -> list[Traffic]:
    """Returns what the interface of each process has counted."""
    return [_traffic(holder) for holder in self.holders]


def parse_rate(text: str) -> int | None:
  """Returns bits a second; None for 'unshaped'.

  Args:
    text: a number and its unit, kbit, mbit or gbit (powers of ten); or
      'unshaped', as fast as the kernel copies.

  Raises:
    ValueError: it is neither, or outside of 1mbit to 40gbit.

  >>> parse_rate('1gbit'), parse_rate('unshaped')
  (1000000000, None)
  """
  if text == UNSHAPED:
    return None
  match = _RATE.fullmatch(text)
  if match is None:
    raise ValueError(
      f'rate={text!r} is no rate; known: {UNSHAPED!r}, or a number with kbit, '
      "mbit or gbit, like '100mbit'"
    )
  rate = round(float(match[1]) * _UNITS[match[2]])
  if not _LEAST <= rate <= _MOST:
    raise ValueError(f'rate={text!r} is not between 1mbit and 40gbit')
  return rate


@contextlib.contextmanager
def shaped_links(processes: int, rate: int | None) -> Iterator[Links]:
  """Makes a network of processes; it is gone when the context ends.

  Args:
    processes: how many, 1 to 1000.
    rate: of each process, in bits a second, in each direction; None: not
      shaped. The frames' headers count, so that TCP gets 95.7 % of it.

  Yields:
    The network. It is connected to nothing else. A command started with a
    prefix dies with this process.

  Raises:
    ValueError: this machine can't make it; the message says why.
  """
  if not 1 <= processes <= _MAX_PROCESSES:
    raise ValueError(
      f'processes={processes} is not between 1 and {_MAX_PROCESSES}'
    )
  _check_machine()
  with contextlib.ExitStack() as stack:
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    hosts = pathlib.Path(directory, 'hosts')
    addresses = [str(_NETWORK[1 + i]) for i in range(processes)]
    hosts.write_text(_hosts(addresses))
    # Bound over /etc/hosts, which every user may read.
    hosts.chmod(0o644)
    bridge = stack.enter_context(_holder(['--net'], _BRIDGE))
    namespaces = ['--mount', '--net', '--uts']
    holders = [
      stack.enter_context(_holder(namespaces, _MEMBER, _name(i), str(hosts)))
      for i in range(processes)
    ]
    for index, holder in enumerate(holders):
      _connect(bridge, holder, index, addresses[index])
      if rate is not None:
        _shape(bridge, f'port{index}', rate)
        _shape(holder, 'eth0', rate)
    yield Links(
      prefixes=[_prefix(holder) for holder in holders],
      addresses=addresses,
      coordinator=f'{addresses[0]}:{_PORT}',
      holders=holders,
    )


def _check_machine() -> None:
  if os.name != 'posix' or os.geteuid() != 0:
    raise ValueError('links between namespaces need root')
  missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
  if missing:
    raise ValueError(
      f'links between namespaces need {", ".join(missing)} '
      '(iproute2, util-linux, hostname)'
    )


def _name(index: int) -> str:
  return f'process{index}'


def _hosts(addresses: Sequence[str]) -> str:
  names = [f'{a} {_name(i)}' for i, a in enumerate(addresses)]
  return '\n'.join(['127.0.0.1 localhost', '::1 localhost', *names, ''])


@contextlib.contextmanager
def _holder(
  namespaces: Sequence[str], script: str, *arguments: str
) -> Iterator[int]:
  """Yields the id of a process that holds new namespaces set up by a script."""
  child = subprocess.Popen(
    ['unshare', *namespaces, 'sh', '-c', script, 'sh', *arguments],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    # A Ctrl-C is for this process, which needs the links to stop the others.
    start_new_session=True,
  )
  with child:
    if child.stdout is None or child.stderr is None:
      raise ValueError('unreachable: pipes were asked for')
    try:
      if child.stdout.readline() != b'ready\n':
        _refuse(child.stderr.read())
      yield child.pid
    finally:
      child.kill()


def _run(holder: int, command: str) -> None:
  """Runs a command in the network namespace of a holder."""
  done = subprocess.run(
    ['nsenter', '--target', str(holder), '--net', *command.split()],
    capture_output=True,
    check=False,
  )
  if done.returncode:
    _refuse(done.stderr)


def _refuse(errors: bytes) -> None:
  said = ' '.join(errors.decode('utf-8', 'replace').split()) or 'no word'
  raise ValueError(f'links between namespaces cannot be made here: {said}')


def _connect(bridge: int, holder: int, index: int, address: str) -> None:
  port = f'port{index}'
  _run(bridge, f'ip link add {port} type veth peer name eth0 netns {holder}')
  _run(bridge, f'ip link set {port} master bridge up')
  size = _NETWORK.prefixlen
  _run(holder, f'ip address add {address}/{size} dev eth0')
  _run(holder, 'ip link set eth0 up')


def bucket_bytes(rate: int) -> int:
  """Returns the size of a link's token bucket: a millisecond of its rate.

  After a pause a full bucket goes out at once. 256 KiB would let a message of a
  quarter of a megabyte pass a link of 100 Mbit in no time, instead of 21 ms;
  and at 10 Gbit timers would be too coarse to refill much less than this.

  >>> bucket_bytes(100_000_000), bucket_bytes(10**10)
  (18432, 1250000)
  """
  return max(rate // 8000, 18 * 1024)


def _shape(holder: int, interface: str, rate: int) -> None:
  bucket = bucket_bytes(rate)
  # What TCP hands over at once has to fit into the bucket, or the queue cuts it
  # up, and the interface counts a header for every 1500 bytes of it.
  segments = min(_SEGMENTS, bucket * 8 // 9)
  _run(
    holder,
    # Below 64 KiB the kernel sets the limit of IPv4 along with it.
    f'ip link set {interface} gso_max_size {segments}',
  )
  _run(
    holder,
    f'tc qdisc add dev {interface} root tbf rate {rate}bit '
    f'burst {bucket}b latency 400ms',
  )


def _prefix(holder: int) -> list[str]:
  enter = ['nsenter', '--target', str(holder), '--mount', '--net', '--uts']
  return [*enter, f'--wd={os.getcwd()}', 'setpriv', '--pdeathsig', 'KILL']


def _traffic(holder: int) -> Traffic:
  text = pathlib.Path(f'/proc/{holder}/net/dev').read_text('ascii')
  match = _COUNTERS.search(text)
  if match is None:
    raise ValueError(f'holder={holder} has no interface eth0')
  return Traffic(sent=int(match[2]), received=int(match[1]))
