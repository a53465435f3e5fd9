"""A local S3 server, and between it and the client a line that loses answers."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Barrier
from pathlib import Path
from subprocess import DEVNULL

from fastscore.output.store.place import place_of

BUCKET = "bucket"
SERVE = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
# one request at a time: between looking whether an object is there and making it, moto holds nothing
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""


def environment(port: int) -> dict[str, str]:
    """Variables by which obstore finds a server of this host."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    return keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true"}


@contextmanager
def server() -> Iterator[int]:
    """Run moto's server with an empty bucket in a process of its own; give its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], stdout=DEVNULL, stderr=DEVNULL)
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        for attempt in range(200):
            try:
                urllib.request.urlopen(request, timeout=10).close()
                break
            except OSError:
                if attempt == 199 or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


class Line(ThreadingHTTPServer):
    """A server that passes requests on, and of those that make an object may lose the answer, or the request.

    Attributes:
        losses: what happens to the next such requests, the first first: "answer" closes the connection after the server
            has done what was asked, "500" says that it failed, "request" closes the connection before.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.losses = port, list[str]()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        line = self.server
        assert isinstance(line, Line)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        loss = line.losses.pop(0) if line.losses and self.headers.get("If-None-Match") else ""
        if loss == "request":
            self.close_connection = True
            return
        behind = http.client.HTTPConnection("127.0.0.1", line.behind, timeout=30)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        content = answer.read()
        if loss == "answer":
            self.close_connection = True
            return
        self.send_response(500 if loss == "500" else answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on

    def log_message(self, *_: object) -> None:
        pass


def race(barrier: Barrier, won: Path) -> None:
    """Create 200 names at the same moments as others; write which were won. For a process of its own."""
    place, wins = place_of(f"s3://{BUCKET}/race"), []
    for k in range(200):
        barrier.wait(120)
        wins.append(place.create(str(k), b"the same"))
    won.write_bytes(bytes(wins))
