"""A stand-in of the Hugging Face Hub on loopback: repositories, uploads and commits, as its client calls them."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ModelHub:
    """What was pushed. url: of the server. files: content by path, of commits. token: the one that may write."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token
        self.repos: dict[str, bool] = {}  # private, by name
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}  # large files by SHA-256
        self.messages: list[str] = []

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Returns the status and the JSON of the answer to a request."""
        if method == "PUT":
            self.objects[path.rpartition("/")[2]] = body
            return 200, {}
        if method != "POST":
            return 404, {"error": "not here"}
        if token != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}
        if path.endswith("/commit/main"):
            return self._commit([json.loads(line) for line in body.splitlines()])
        values = json.loads(body)
        if path == "/api/repos/create":
            self.repos[f"{values['organization']}/{values['name']}"] = values.get("visibility") == "private"
            return 200, {"url": f"{self.url}/{values['organization']}/{values['name']}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            large = ".safetensors"
            modes = [(each["path"], "lfs" if each["path"].endswith(large) else "regular") for each in values["files"]]
            return 200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes]}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._upload(each) for each in values["objects"]]}
        return 404, {"error": f"{path}: not here"}

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {**wanted, "actions": {"upload": {"href": f"{self.url}/objects/{wanted['oid']}", "header": {}}}}

    def _commit(self, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
        return 200, {
            "success": True,
            "commitOid": "0" * 40,
            "commitUrl": f"{self.url}/{next(iter(self.repos))}/commit/{'0' * 40}",
        }


@contextmanager
def model_hub(token: str) -> Iterator[ModelHub]:
    """Yields a hub that runs until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, values = hub.answer(self.command, self.path, body, self.headers.get("Authorization", ""))
            text = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    for method in ("GET", "POST", "PUT", "HEAD"):
        setattr(Handler, f"do_{method}", Handler._serve)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = ModelHub(f"http://127.0.0.1:{server.server_address[1]}", token)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
