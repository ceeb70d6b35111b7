"""Parses command lines with the real gcloud and runs none.

    BUNDLED_PYTHON real_parser.py /usr/lib/google-cloud-sdk <lines

Exits with 2 at the first line that gcloud would refuse.
"""

import shlex
import sys


def main():
  """Parses every line of standard input."""
  root = sys.argv[1]
  sys.path[:0] = [f"{root}/lib", f"{root}/lib/third_party"]
  from googlecloudsdk import gcloud_main

  parser = gcloud_main.CreateCLI([])._CLI__parser
  for line in sys.stdin:
    parser.parse_args(shlex.split(line))
    print("parsed", line.strip())


if __name__ == "__main__":
  main()
