"""HTTP for the API, in threads of the process that asks for it."""

import contextlib
import http.server
import sys
import threading
import urllib.parse

from tests.gcs_server import api
from tests.gcs_server import faults as faults_lib
from tests.gcs_server.bucket import ApiError, Bucket


class Server:
  """One bucket at an address of this computer.

  Attributes:
    url: str, such as "http://127.0.0.1:34567".
    bucket: `Bucket`.
    address: str, the bucket's "gs://...".
    faults: `Faults` to come.
    rights: frozenset of permissions; those of the documented roles at first.
    requests: list of (method, path with query, status), in order; the status
      is None where the connection was cut without an answer.
    stopping: event that ends all waiting.
  """

  def __init__(self):
    """Listens at once; `serve` ends it."""
    self.faults = faults_lib.Faults()
    self.rights = frozenset(api.OBJECT_ADMIN + api.LEGACY_BUCKET_READER)
    self.requests = []
    self.stopping = threading.Event()
    self.http = _HttpServer(("127.0.0.1", 0), _make_handler(self))
    self.url = f"http://127.0.0.1:{self.http.server_port}"
    # Clients remember buckets by name, and a process may meet two servers.
    self.bucket = Bucket(f"bucket-{self.http.server_port}")
    self.address = f"gs://{self.bucket.name}"

  def statuses(self):
    """Returns the statuses of all requests so far."""
    return [status for _, _, status in self.requests]

  def environment(self):
    """Returns the variables that lead the clients here, dict of str."""
    return {
      # gcsfs and google-cloud-storage; neither looks for a metadata server.
      "STORAGE_EMULATOR_HOST": self.url,
      # Of a workdir whose process was killed.
      "BERT_JAX_LOCK_SECONDS": "2",
      "NO_GCE_CHECK": "true",
      # tensorstore
      "TENSORSTORE_GCS_HTTP_URL": self.url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anything",
    }


class _HttpServer(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128

  def handle_error(self, request, client_address):
    """Forgets a client that hung up, as gcsfs does with what it races."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


@contextlib.contextmanager
def serve():
  """Runs a server with an empty bucket while the context lasts.

  Yields:
    `Server`.
  """
  server = Server()
  thread = threading.Thread(
    target=server.http.serve_forever, kwargs={"poll_interval": 0.05}
  )
  thread.start()
  try:
    yield server
  finally:
    server.stopping.set()
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def _make_handler(server):
  """Returns the class that answers the requests of a `Server`."""

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
      """Keeps standard error free."""

    def do_GET(self):
      _handle(server, self)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

  return Handler


def _handle(server, connection):
  """Answers one request, or fails as a fault says."""
  path, _, query = connection.path.partition("?")
  line = f"{connection.command} {urllib.parse.unquote(connection.path)}"
  fault = server.faults.take(line)
  kind = fault and fault.kind
  if kind == faults_lib.CUT_WRITE:
    connection.rfile.read(int(connection.headers["Content-Length"]) // 2)
    return _hang_up(server, connection)
  body = _read_body(connection)
  if kind == faults_lib.DELAY:
    server.stopping.wait(fault.seconds)
  if kind == faults_lib.STATUS:
    error = ApiError(fault.status, "backendError", "a fault that was asked for")
    return _send(server, connection, api.error_response(error))
  response = _answer(server, connection, path, query, body)
  if kind == faults_lib.NO_ANSWER:
    return _hang_up(server, connection)
  return _send(server, connection, response, kind == faults_lib.CUT_READ)


def _answer(server, connection, path, query, body):
  request = api.Request(
    method=connection.command,
    path=path,
    query=dict(urllib.parse.parse_qsl(query, keep_blank_values=True)),
    headers=connection.headers,
    body=body,
    bucket=server.bucket,
    rights=server.rights,
    url=server.url,
  )
  try:
    return api.answer(request)
  except ApiError as e:
    return api.error_response(e)


def _read_body(connection):
  if connection.headers.get("Transfer-Encoding") != "chunked":
    return connection.rfile.read(int(connection.headers["Content-Length"] or 0))
  body = b""
  while size := int(connection.rfile.readline().split(b";")[0], 16):
    body += connection.rfile.read(size)
    connection.rfile.readline()
  connection.rfile.readline()
  return body


def _send(server, connection, response, cut=False):
  server.requests.append((connection.command, connection.path, response.status))
  connection.send_response(response.status)
  for key, value in response.headers.items():
    connection.send_header(key, value)
  if response.status not in (204, 304):
    connection.send_header("Content-Length", str(len(response.body)))
  connection.end_headers()
  size = len(response.body) // 2 if cut else len(response.body)
  connection.wfile.write(response.body[:size])
  connection.close_connection = connection.close_connection or cut


def _hang_up(server, connection):
  server.requests.append((connection.command, connection.path, None))
  connection.close_connection = True
