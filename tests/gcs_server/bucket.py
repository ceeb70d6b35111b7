"""Objects of one bucket: generations, preconditions, listings, uploads."""

import base64
import dataclasses
import datetime
import hashlib
import itertools
import threading

import google_crc32c


class ApiError(Exception):
  """What a request ends with, other than success.

  Attributes:
    status: HTTP status, int.
    reason: the API's word for it, such as "notFound".
  """

  def __init__(self, status, reason, message):
    """Takes what goes into the body of the answer."""
    super().__init__(message)
    self.status = status
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class StoredObject:
  """One generation of an object.

  Attributes:
    data: bytes.
    generation: int, larger than that of anything written before.
    created: `datetime.datetime`.
    content_type: str.
    metadata: dict of the user's own keys.
    components: int, out of how many objects it was composed; 0 if it was not.
  """

  name: str
  data: bytes
  generation: int
  created: datetime.datetime
  content_type: str
  metadata: dict
  components: int = 0

  @property
  def crc32c(self):
    """The checksum as the API spells it."""
    return _base64(google_crc32c.value(self.data).to_bytes(4, "big"))

  @property
  def md5(self):
    """The hash as the API spells it; composed objects have none."""
    return None if self.components else _base64(_md5(self.data))


def _md5(data):
  return hashlib.md5(data, usedforsecurity=False).digest()


def _base64(data):
  return base64.b64encode(data).decode()


@dataclasses.dataclass
class Upload:
  """A resumable upload that has begun; no object until it is complete."""

  attributes: dict
  conditions: dict
  data: bytearray = dataclasses.field(default_factory=bytearray)


class Bucket:
  """The newest generation of every object, and the uploads in progress.

  A write is all or nothing, and every later read and listing sees it, as with
  the service.
  """

  def __init__(self, name):
    """Begins without objects."""
    self.name = name
    self.uploads = {}
    self._objects = {}
    self._lock = threading.RLock()
    self._generations = itertools.count(1_790_000_000_000_000)
    self._upload_ids = itertools.count(1)

  def names(self):
    """Returns the names of all objects, in order."""
    with self._lock:
      return sorted(self._objects)

  def get(self, name, conditions=None):
    """Returns a `StoredObject`.

    Args:
      name: str.
      conditions: dict of the request's `generation` and `if...Match`.

    Raises:
      ApiError: there is none, or a condition fails.
    """
    with self._lock:
      found = self._objects.get(name)
    wanted = (conditions or {}).get("generation")
    if found is None or wanted not in (None, str(found.generation)):
      raise ApiError(404, "notFound", f"No such object: {self.name}/{name}")
    _check_conditions(found, conditions or {})
    return found

  def put(self, attributes, data, conditions=None, components=0):
    """Stores an object in one piece.

    Args:
      attributes: the resource that the client sent, with `name`.
      data: bytes.
      conditions: as for `get`; a generation of 0 is "there is none".
      components: see `StoredObject`.

    Returns:
      `StoredObject`.

    Raises:
      ApiError: a condition fails, or the data are not what a checksum says.
    """
    stored = StoredObject(
      name=attributes["name"],
      data=bytes(data),
      generation=next(self._generations),
      created=datetime.datetime.now(datetime.UTC),
      content_type=attributes.get("contentType") or "application/octet-stream",
      metadata=attributes.get("metadata") or {},
      components=components,
    )
    for key, found in (("crc32c", stored.crc32c), ("md5Hash", stored.md5)):
      if attributes.get(key) not in (None, found):
        message = f"Provided {key} {attributes[key]!r} doesn't match {found!r}"
        raise ApiError(400, "invalid", message)
    with self._lock:
      _check_conditions(self._objects.get(stored.name), conditions or {})
      self._objects[stored.name] = stored
    return stored

  def delete(self, name, conditions=None):
    """Removes an object; raises `ApiError` as `get` does."""
    with self._lock:
      self.get(name, conditions)
      del self._objects[name]

  def move(self, source, target, conditions):
    """Renames an object in one step; returns the new `StoredObject`."""
    with self._lock:
      moved = self.copy(source, target, conditions)
      self.delete(source)
    return moved

  def copy(self, source, target, conditions):
    """Stores the same data under another name; returns `StoredObject`."""
    with self._lock:
      found = self.get(
        source, {"generation": conditions.get("sourceGeneration")}
      )
      attributes = {
        "name": target,
        "contentType": found.content_type,
        "metadata": found.metadata,
      }
      return self.put(attributes, found.data, conditions, found.components)

  def begin_upload(self, attributes, conditions):
    """Returns the id of a new resumable upload, str."""
    identity = f"upload-{next(self._upload_ids)}"
    self.uploads[identity] = Upload(attributes, conditions)
    return identity

  def list(self, prefix, delimiter, start, end, include_delimiter):
    """Lists names as the API does.

    Args:
      prefix: str that names begin with.
      delimiter: str, or "" to list everything below the prefix.
      start: str; the first name that counts.
      end: str or None; the first one that does not count any more.
      include_delimiter: whether a name that ends with its only delimiter is
        an object beside being a prefix.

    Returns:
      list of (name, `StoredObject`), in order; None in place of the object
      stands for a prefix, whose names were folded.
    """
    with self._lock:
      objects = dict(self._objects)
    found = {}
    for name in sorted(objects):
      is_inside = name >= start and (end is None or name < end)
      if not (name.startswith(prefix) and is_inside):
        continue
      head, cut, _ = name[len(prefix) :].partition(delimiter or "\0")
      if not cut:
        found[name, False] = objects[name]
        continue
      found[prefix + head + delimiter, True] = None
      if include_delimiter and name == prefix + head + delimiter:
        found[name, False] = objects[name]
    return [(name, found[name, folded]) for name, folded in sorted(found)]


def _check_conditions(found, conditions):
  """Raises `ApiError` unless an object, or None, meets the preconditions."""
  generation = str(found.generation) if found else "0"
  match = conditions.get("ifGenerationMatch")
  if match not in (None, generation):
    message = f"generation is {generation}; expected {match}"
    raise ApiError(412, "conditionNotMet", message)
  if conditions.get("ifGenerationNotMatch") == generation:
    raise ApiError(304, "notModified", "it is of this generation")
