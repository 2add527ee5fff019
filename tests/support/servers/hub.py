"""A stand-in for the Hugging Face hub on loopback: data sets of files, at one commit."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_server(datasets: dict[str, dict[str, bytes]]) -> Iterator[str]:
    """Serves {OWNER/NAME: {file: bytes}} at one commit, which is also the branch main, and yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(send_body=False)

        def do_GET(self) -> None:
            self._answer(send_body=True)

        def _answer(self, send_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            for repo, files in datasets.items():
                if path.startswith(f"/api/datasets/{repo}"):
                    revision = path.removeprefix(f"/api/datasets/{repo}").removeprefix("/revision/")
                    if revision not in ("", "main", COMMIT):
                        self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, send_body)
                        return
                    siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
                    body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
                    self._send(200, body, {"Content-Type": "application/json"}, send_body)
                    return
                name = path.removeprefix(f"/datasets/{repo}/resolve/{COMMIT}/")
                if name in files:
                    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hash(files[name]):x}"'}
                    self._send(200, files[name], headers, send_body)
                    return
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, send_body)

        def _send(self, status: int, body: bytes, headers: dict[str, str], send_body: bool) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
