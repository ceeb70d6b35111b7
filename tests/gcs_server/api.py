"""The requests of the JSON API that the clients send, and their answers."""

import dataclasses
import json
import re
import urllib.parse

from tests.gcs_server.bucket import ApiError

OBJECT_ADMIN = (
  "storage.objects.create",
  "storage.objects.delete",
  "storage.objects.get",
  "storage.objects.list",
  "storage.objects.update",
)
LEGACY_BUCKET_READER = ("storage.buckets.get", "storage.objects.list")

_CREATE, _DELETE, _GET, _LIST, _ = OBJECT_ADMIN
_GET_BUCKET = "storage.buckets.get"
_CONDITIONS = (
  "generation",
  "ifGenerationMatch",
  "ifGenerationNotMatch",
  "sourceGeneration",
)
_UNKNOWN_CONDITIONS = re.compile("^if(Source|Metageneration)")


@dataclasses.dataclass
class Request:
  """A request as it came in.

  Attributes:
    query: dict of str.
    headers: the headers, by any case of their name.
    body: bytes.
    bucket: `Bucket` that it is about.
    rights: the permissions that the caller has.
    url: the server's own address.
  """

  method: str
  path: str
  query: dict
  headers: dict
  body: bytes
  bucket: object
  rights: frozenset
  url: str

  def need(self, *permissions):
    """Raises `ApiError` unless the caller has these permissions."""
    for permission in permissions:
      if permission not in self.rights:
        raise ApiError(
          403,
          "forbidden",
          f"someone@example.com does not have {permission} access to the "
          f"Google Cloud Storage resource. Permission '{permission}' denied on "
          "resource (or it may not exist).",
        )

  def need_to_write(self, name):
    """Checks the rights to write an object; overwriting deletes one."""
    self.need(_CREATE, *([_DELETE] if name in self.bucket.names() else []))

  @property
  def conditions(self):
    """The preconditions, as `Bucket` takes them."""
    for key in self.query:
      if _UNKNOWN_CONDITIONS.match(key):
        raise ApiError(501, "notImplemented", f"{key} is not known here")
    return {k: v for k, v in self.query.items() if k in _CONDITIONS}


@dataclasses.dataclass
class Response:
  """An answer: status, headers and body."""

  status: int
  headers: dict
  body: bytes = b""


def answer(request):
  """Does what a request asks for; returns `Response`."""
  for method, pattern, function in _REQUESTS:
    match = re.fullmatch(pattern, request.path)
    if request.method in method.split("|") and match:
      if match.group(1) != request.bucket.name:
        raise ApiError(404, "notFound", "The specified bucket does not exist.")
      parts = [urllib.parse.unquote(part) for part in match.groups()[1:]]
      return function(request, *parts)
  raise ApiError(501, "notImplemented", f"{request.method} {request.path}")


def error_response(error):
  """Returns the `Response` for an `ApiError`."""
  if error.status == 304:
    return Response(304, {})
  detail = {"message": str(error), "domain": "global", "reason": error.reason}
  body = {"code": error.status, "message": str(error), "errors": [detail]}
  return _json({"error": body}, error.status)


def _json(value, status=200, headers=None):
  kind = {"Content-Type": "application/json; charset=UTF-8"}
  return Response(status, kind | (headers or {}), json.dumps(value).encode())


def _resource(bucket, stored):
  time = stored.created.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
  resource = {
    "kind": "storage#object",
    "id": f"{bucket.name}/{stored.name}/{stored.generation}",
    "name": stored.name,
    "bucket": bucket.name,
    "generation": str(stored.generation),
    "metageneration": "1",
    "contentType": stored.content_type,
    "storageClass": "STANDARD",
    "size": str(len(stored.data)),
    "crc32c": stored.crc32c,
    "etag": f"etag-{stored.generation}",
    "timeCreated": time,
    "updated": time,
  }
  if stored.metadata:
    resource["metadata"] = stored.metadata
  if stored.components:
    return resource | {"componentCount": stored.components}
  return resource | {"md5Hash": stored.md5}


def _get_bucket(request):
  request.need(_GET_BUCKET)
  return _json(
    {
      "kind": "storage#bucket",
      "id": request.bucket.name,
      "name": request.bucket.name,
      "location": "US-CENTRAL1",
      "locationType": "region",
      "storageClass": "STANDARD",
    }
  )


def _get_storage_layout(request):
  request.need(_LIST)
  return _json(
    {
      "kind": "storage#storageLayout",
      "bucket": request.bucket.name,
      "location": "US-CENTRAL1",
      "locationType": "region",
      "hierarchicalNamespace": {"enabled": False},
    }
  )


def _list_objects(request):
  request.need(_LIST)
  query = request.query
  found = request.bucket.list(
    query.get("prefix", ""),
    query.get("delimiter", ""),
    query.get("startOffset", ""),
    query.get("endOffset"),
    query.get("includeTrailingDelimiter") == "true",
  )
  # A page goes on after the last name of the page before.
  after = query.get("pageToken")
  found = [item for item in found if after is None or item[0] > after]
  count = min(int(query.get("maxResults", 1000)), 1000)
  page, more = found[:count], found[count:]
  listing = {"kind": "storage#objects"}
  items = [_resource(request.bucket, x) for _, x in page if x is not None]
  prefixes = [name for name, stored in page if stored is None]
  if items:
    listing["items"] = items
  if prefixes:
    listing["prefixes"] = prefixes
  if more:
    listing["nextPageToken"] = page[-1][0]
  return _json(listing)


def _get_object(request, name):
  request.need(_GET)
  stored = request.bucket.get(name, request.conditions)
  if request.query.get("alt") != "media":
    return _json(_resource(request.bucket, stored))
  headers = {
    "Content-Type": stored.content_type,
    "ETag": f"etag-{stored.generation}",
    "x-goog-generation": str(stored.generation),
    "x-goog-metageneration": "1",
    "x-goog-stored-content-encoding": "identity",
    "x-goog-stored-content-length": str(len(stored.data)),
    "x-goog-hash": f"crc32c={stored.crc32c}"
    + (f",md5={stored.md5}" if stored.md5 else ""),
  }
  bounds = request.headers.get("Range")
  if not bounds:
    return Response(200, headers, stored.data)
  size = len(stored.data)
  first, last = _byte_range(bounds, size)
  if first >= size:
    message = "Request range not satisfiable"
    raise ApiError(416, "requestedRangeNotSatisfiable", message)
  headers["Content-Range"] = f"bytes {first}-{last}/{size}"
  return Response(206, headers, stored.data[first : last + 1])


def _byte_range(text, size):
  """Returns the first and the last byte of a Range header."""
  first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", text).groups()
  if not first:
    return max(0, size - int(last)), size - 1
  return int(first), min(int(last), size - 1) if last else size - 1


def _delete_object(request, name):
  request.need(_DELETE)
  request.bucket.delete(name, request.conditions)
  return Response(204, {})


def _insert(request):
  kind = request.query.get("uploadType")
  if "upload_id" in request.query:
    return _continue_upload(request)
  if kind == "media":
    attributes = {
      "name": request.query["name"],
      "contentType": request.headers.get("Content-Type"),
    }
    return _store(request, attributes, request.body)
  if kind == "multipart":
    attributes, data = _read_multipart(request)
    attributes.setdefault("name", request.query.get("name"))
    return _store(request, attributes, data)
  if kind == "resumable":
    return _begin_upload(request)
  raise ApiError(501, "notImplemented", f"uploadType={kind}")


def _store(request, attributes, data):
  request.need_to_write(attributes["name"])
  stored = request.bucket.put(attributes, data, request.conditions)
  return _json(_resource(request.bucket, stored))


def _read_multipart(request):
  """Returns (resource, data) of a multipart/related body."""
  kind = request.headers["Content-Type"]
  boundary = re.search(r'boundary="?([^";]+)"?', kind).group(1).encode()
  parts = re.split(rb"(?:^|\r?\n)--" + re.escape(boundary), request.body)
  if len(parts) < 4:
    raise ApiError(400, "badContent", "the body ends before its last boundary")
  (_, resource), (head, data) = (_split_part(part) for part in parts[1:3])
  attributes = json.loads(resource)
  found = re.search(rb"(?i)content-type:\s*([^\r\n]+)", head)
  if found:
    attributes.setdefault("contentType", found.group(1).decode())
  return attributes, data


def _split_part(part):
  """Returns (headers, body) of one part, both bytes."""
  match = re.match(rb"\r?\n(.*?)\r?\n\r?\n", part, re.DOTALL)
  return match.group(1), part[match.end() :]


def _begin_upload(request):
  attributes = json.loads(request.body or b"{}")
  attributes.setdefault("name", request.query.get("name"))
  kind = request.headers.get("X-Upload-Content-Type")
  attributes.setdefault("contentType", kind)
  request.need_to_write(attributes["name"])
  identity = request.bucket.begin_upload(attributes, request.conditions)
  address = (
    f"{request.url}/upload/storage/v1/b/{request.bucket.name}/o"
    f"?uploadType=resumable&upload_id={identity}"
  )
  return Response(200, {"Location": address, "X-GUploader-UploadID": identity})


def _continue_upload(request):
  identity = request.query.get("upload_id")
  upload = request.bucket.uploads.get(identity)
  if upload is None:
    raise ApiError(404, "notFound", f"no upload {identity}")
  bounds = request.headers.get("Content-Range", f"bytes 0-/{len(request.body)}")
  first, total = re.fullmatch(
    r"bytes (?:(\d+)-\d*|\*)/(\d+|\*)", bounds
  ).groups()
  if first is not None:
    # What is there already, of an answer that the client never got, stays.
    skipped = len(upload.data) - int(first)
    if skipped < 0:
      raise ApiError(400, "invalid", f"{bounds} begins after the bytes so far")
    upload.data += request.body[skipped:]
  if total == "*" or len(upload.data) < int(total):
    so_far = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
    return Response(308, so_far)
  stored = request.bucket.put(upload.attributes, upload.data, upload.conditions)
  del request.bucket.uploads[identity]
  return _json(_resource(request.bucket, stored))


def _cancel_upload(request):
  request.bucket.uploads.pop(request.query.get("upload_id"), None)
  return Response(499, {})


def _compose(request, name):
  request.need(_GET)
  request.need_to_write(name)
  body = json.loads(request.body)
  parts = [request.bucket.get(x["name"]) for x in body["sourceObjects"]]
  if not 1 <= len(parts) <= 32:
    raise ApiError(400, "invalid", f"{len(parts)} sources; expected 1 to 32")
  stored = request.bucket.put(
    (body.get("destination") or {}) | {"name": name},
    b"".join(part.data for part in parts),
    request.conditions,
    components=sum(part.components or 1 for part in parts),
  )
  return _json(_resource(request.bucket, stored))


def _rewrite(request, source, bucket, target):
  if bucket != request.bucket.name:
    raise ApiError(404, "notFound", f"no bucket {bucket}")
  request.need(_GET)
  request.need_to_write(target)
  # The service may want to be asked again for any object; ask once for each.
  size = str(len(request.bucket.get(source).data))
  progress = {"kind": "storage#rewriteResponse", "objectSize": size}
  if "rewriteToken" not in request.query:
    more = {"totalBytesRewritten": "0", "done": False, "rewriteToken": "more"}
    return _json(progress | more)
  stored = request.bucket.copy(source, target, request.conditions)
  resource = _resource(request.bucket, stored)
  done = {"totalBytesRewritten": size, "done": True, "resource": resource}
  return _json(progress | done)


def _move(request, source, target):
  request.need(_GET, _DELETE)
  request.need_to_write(target)
  stored = request.bucket.move(source, target, request.conditions)
  return _json(_resource(request.bucket, stored))


_BUCKET = "/storage/v1/b/([^/]+)"
_REQUESTS = (
  ("GET", _BUCKET, _get_bucket),
  ("GET", f"{_BUCKET}/storageLayout", _get_storage_layout),
  ("GET", f"{_BUCKET}/o", _list_objects),
  ("GET", f"(?:/download)?{_BUCKET}/o/([^/]+)", _get_object),
  ("DELETE", f"{_BUCKET}/o/([^/]+)", _delete_object),
  ("POST", f"{_BUCKET}/o/([^/]+)/compose", _compose),
  ("POST", f"{_BUCKET}/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)", _rewrite),
  ("POST", f"{_BUCKET}/o/([^/]+)/moveTo/o/([^/]+)", _move),
  ("PUT|POST", f"/upload{_BUCKET}/o", _insert),
  ("DELETE", f"/upload{_BUCKET}/o", _cancel_upload),
)
