"""Names the lost host where the process that should name it was aborted.

JAX's coordination service runs in process 0. When process 0 is killed, the C++
code of every other process aborts that process at once, before any of its
Python code can print a message. So each process starts this small program,
which prints the message in its place.

    python -m bert_jax.distributed.abort_message HOST:PORT LINE

Prints LINE when standard input ends empty, as it does when the process that
holds its other end is aborted, and nobody listens at HOST:PORT any more.
"""

import socket
import sys

_CONNECT_SECONDS = 5


def main(address, line):
  """Waits for the end of standard input, then prints `line` or nothing."""
  if sys.stdin.read():
    return
  host, port = address.rsplit(":", 1)
  try:
    socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
  except OSError:
    print(line, file=sys.stderr)


if __name__ == "__main__":
  main(*sys.argv[1:])
