"""Read, write, list and delete objects in S3 and Google Cloud Storage; each function sends one request at a time."""

from contextlib import suppress
from typing import Any

from pipeline.core.errors import StorageError
from pipeline.storage.request_counts import count_requests
from pipeline.storage.retries import ConflictError, send_request

LIST_PAGE_KEYS = 1000


def read_range(uri: str, offset: int, length: int) -> memoryview:
    """Returns `length` bytes at `offset`. Raises FileNotFoundError, or StorageError if the object has fewer."""
    import obstore

    if not length:
        return memoryview(b"")
    answer = send_request("get", uri, lambda store, key: obstore.get_range(store, key, start=offset, length=length))
    data = memoryview(answer)
    if len(data) != length:
        raise StorageError(f"{uri}: {len(data)} bytes at {offset}, {length} were expected; the object has changed")
    count_requests(bytes_read=length)
    return data


def read(uri: str) -> tuple[bytes, str]:
    """Returns an object and its version: the ETag in S3, the generation in Google. Raises FileNotFoundError."""
    import obstore

    def get(store: Any, key: str) -> tuple[bytes, str]:
        result = obstore.get(store, key)
        return bytes(result.bytes()), str(result.meta[_version_field(uri)])  # type: ignore[literal-required]

    data, version = send_request("get", uri, get)
    count_requests(bytes_read=len(data))
    return data, version


def create(uri: str, data: Any) -> str:
    """Writes a new object, as `write` does. Raises ConflictError if there is one already."""
    return _put(uri, data, "create")


def replace(uri: str, data: Any, version: str) -> str:
    """Replaces an object of this version, as `write` does. Raises ConflictError if it has another version."""
    return _put(uri, data, {_version_field(uri): version})


def write(uri: str, data: Any) -> str:
    """Writes an object in one request and returns its version."""
    return _put(uri, data, None)


def _version_field(uri: str) -> str:
    return "version" if uri.startswith("gs:") else "e_tag"


def _put(uri: str, data: Any, mode: Any) -> str:
    import obstore

    def put(store: Any, key: str) -> str:
        result = obstore.put(store, key, data, mode=mode, use_multipart=False)
        return str(result[_version_field(uri)])  # type: ignore[literal-required]

    try:
        version = send_request("put", uri, put)
    except ConflictError as conflict:
        # An earlier try may have succeeded although its answer was lost. Then the object has our bytes.
        if conflict.tries:
            found, version = read(uri)
            if found == bytes(data):
                return version
        raise
    count_requests(bytes_written=len(data))
    return version


def head(uri: str) -> dict[str, Any]:
    """Returns {"size", "last_modified", "e_tag"} of an object. Raises FileNotFoundError."""
    import obstore

    answer = send_request("head", uri, obstore.head)
    return dict(answer)


def list_below(uri: str) -> list[dict[str, Any]]:
    """Returns {"path", "size", "last_modified"} of every object below a prefix, from all pages."""
    import obstore

    def pages(store: Any, key: str) -> list[dict[str, Any]]:
        return [dict(entry) for page in obstore.list(store, key or None, chunk_size=LIST_PAGE_KEYS) for entry in page]

    found = send_request("list", uri, pages)
    count_requests(list=len(found) // LIST_PAGE_KEYS)
    return found


def list_level(uri: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns (prefixes, objects) directly below a prefix; the objects as `list_below` does."""
    import obstore

    def level(store: Any, key: str) -> Any:
        return obstore.list_with_delimiter(store, key or None)

    answer = send_request("list", uri, level)
    objects = [dict(entry) for entry in answer["objects"]]
    count_requests(list=(len(objects) + len(answer["common_prefixes"])) // LIST_PAGE_KEYS)
    return list(answer["common_prefixes"]), objects


def delete(uri: str, keys: list[str]) -> None:
    """Removes objects of the bucket of `uri`, 1,000 a request in S3, one in Google. A missing object is no error."""
    import obstore

    if uri.startswith("gs:"):
        for key in keys:
            with suppress(FileNotFoundError):
                send_request("delete", uri, lambda store, _, key=key: obstore.delete(store, key))  # type: ignore[misc]
        return
    for start in range(0, len(keys), LIST_PAGE_KEYS):
        some = keys[start : start + LIST_PAGE_KEYS]
        send_request("delete", uri, lambda store, _, some=some: obstore.delete(store, some))  # type: ignore[misc]
