"""Says which host was lost when the process that should say it is aborted.

JAX's coordination service lives in process 0. When that is killed, the C++ of
every other process aborts at once, and none of their Python runs any more. So
each starts this small program beside it, which waits for its end.

    python -m bert_jax.distributed.last_words HOST:PORT LINE

Prints LINE if standard input ends without a word, as it does with a process
that is aborted, and nobody listens at HOST:PORT.
"""

import socket
import sys

_CONNECT_SECONDS = 5


def main(address, line):
  """Waits for the end of standard input; see above."""
  if sys.stdin.read():
    return
  host, port = address.rsplit(":", 1)
  try:
    socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
  except OSError:
    print(line, file=sys.stderr)


if __name__ == "__main__":
  main(*sys.argv[1:])
