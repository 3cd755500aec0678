"""A small hub on this machine: what huggingface_hub asks for when it makes a repository and uploads a folder."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_fake_hub"


class FakeHub:
    """What was asked of it, and what it holds.

    Attributes:
      repositories: id -> what it was made with.
      files: (id, branch) -> path -> content.
      failing_objects: it takes no large file.
      failing: a status that it answers everything with; None: it works.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.branches: set[tuple[str, str]] = set()
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.failing: int | None = None
        self.failing_objects = False
        self.asked: list[str] = []

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, dict[str, Any]]:
        """Returns status and JSON."""
        path = path.partition("?")[0]
        self.asked.append(f"{method} {path}")
        if self.failing is not None:
            return self.failing, {"error": "as it was told to"}
        if method == "PUT":
            if self.failing_objects:
                return 403, {"error": "no room"}
            self.objects[path.rpartition("/")[2]] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            made = json.loads(body)
            name = f"{made['organization']}/{made['name']}" if made.get("organization") else made["name"]
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", "url": f"/{name}"}
            self.repositories[name] = made
            return 200, {"url": f"http://127.0.0.1:{self.port}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)
            address = f"http://127.0.0.1:{self.port}/object/"
            found = [{**o, "actions": {"upload": {"href": address + o["oid"]}}} for o in asked["objects"]]
            return 200, {"transfer": "basic", "objects": found}
        if not path.startswith("/api/models/"):
            return 404, {"error": f"no {path}"}
        owner, name, *rest = path.removeprefix("/api/models/").split("/")
        return self._repository(f"{owner}/{name}", rest, body)

    def _repository(self, name: str, rest: list[str], body: bytes) -> tuple[int, dict[str, Any]]:
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        kind, branch = (*rest, "", "main")[:2] if len(rest) > 1 else (rest[0] if rest else "", "main")
        if kind == "branch":
            self.branches.add((name, branch))
            return 200, {}
        if kind == "preupload":
            large = (".safetensors",)
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(large) else "regular",
                 "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            return 200, {"files": files}
        if kind == "commit":
            held = self.files.setdefault((name, branch), {})
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    held[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    held[value["path"]] = self.objects[value["oid"]]
            address = f"http://127.0.0.1:{self.port}/{name}/commit/{'1' * 40}"
            return 200, {"success": True, "commitOid": "1" * 40, "commitUrl": address}
        return 200, {"id": name, "sha": "0" * 40, "siblings": [], "tags": [], "private": False}

    port = 0


@contextmanager
def fake_hub():
    """A hub that listens on this machine, as (hub, address)."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self._body()
            status, found = hub.answer(self.command, self.path, body, self.headers.get("authorization"))
            text = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding", "") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("content-length") or 0))

        do_GET = do_POST = do_PUT = do_HEAD = _handle

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{hub.port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
