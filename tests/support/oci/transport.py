"""HTTP/1.1 listeners: reads requests, lets faults and handlers answer them, writes the log."""

import dataclasses
import http.server
import ipaddress
import json
import os
import socket
import ssl
import threading
import traceback
import urllib.parse
from email.utils import formatdate

from world import Refusal


@dataclasses.dataclass
class Request:
    """A request as it came, byte for byte where that matters."""

    method: str
    target: str
    headers: list
    body: bytes
    authorities: frozenset
    # What the log shall say beside the rest.
    note: dict

    @property
    def path(self):
        return urllib.parse.unquote(self.target.partition("?")[0])

    def all(self, name):
        return [value for header, value in self.headers if header == name]

    def header(self, name):
        """The first header of that (lower-case) name."""
        return next(iter(self.all(name)), None)

    def json(self):
        """The body, which must be a JSON object."""
        try:
            value = json.loads(self.body.decode())
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Refusal(400, "CannotParseRequest", "The request body is not a JSON object.")
        return value

    def must_be_json(self):
        if (self.header("content-type") or "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "UnsupportedMediaType", "Send application/json.")


@dataclasses.dataclass
class Answer:
    status: int
    body: bytes
    headers: dict
    code: str = None

    @classmethod
    def json(cls, value, status=200, **headers):
        return cls(status, json.dumps(value).encode(), {"content-type": "application/json", **headers})

    @classmethod
    def text(cls, text, status=200, content_type="text/plain"):
        return cls(status, text.encode(), {"content-type": content_type})

    @classmethod
    def refusal(cls, refusal):
        answer = cls.json({"code": refusal.code, "message": refusal.message}, refusal.status)
        answer.code = refusal.code
        return answer


class Hangup(Exception):
    """The connection is to be closed; what there was to say has been said."""


class Listener(http.server.ThreadingHTTPServer):
    """One service on one port. `handle` makes an answer from a request."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, name, world, faults, handle, address=("127.0.0.1", 0), tls=None, log=None, logged=True):
        if ipaddress.ip_address(address[0]).version == 6:
            self.address_family = socket.AF_INET6
        self.name, self.world, self.faults, self.handle = name, world, faults, handle
        self.tls, self.log, self.logged = tls, log, logged
        super().__init__(address, Connection)
        host, port = self.server_address[:2]
        self.host = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls else 'http'}://{self.host}:{port}"
        self.authorities = frozenset({f"{self.host}:{port}", f"localhost:{port}"})

    def server_bind(self):
        # Not HTTPServer's, which asks the name service for this machine's name.
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def start(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 60}, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that goes away in the middle is the client's business."""


class Connection(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self):
        if self.server.tls:
            # Here and not in the accept loop: a client that does not shake hands holds up itself only.
            self.request.settimeout(30)
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
            self.request.settimeout(None)
        super().setup()

    def finish(self):
        super().finish()
        if self.server.tls:
            self.request.close()

    def log_message(self, *_):
        pass

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.serve
        raise AttributeError(name)

    def serve(self):
        headers = [(name.lower(), value) for name, value in self.headers.items()]
        length = self.headers.get("content-length", "0")
        if self.headers.get("transfer-encoding") or not length.isdigit():
            self.close_connection = True
            return self.send(Answer.json({"code": "MissingContentLength", "message": "Send content-length."}, 411))
        body = self.rfile.read(int(length))
        request = Request(self.command, self.path, headers, body, self.server.authorities, {})
        fault = self.server.faults.take(self.server.name, request)
        try:
            answer = fault.before(self, request) if fault else None
            answer = answer or self.answer(request)
            self.record(request, answer.status, answer.code, fault)
            if fault:
                fault.after(self, answer)
            self.send(answer)
        except Hangup:
            self.close_connection = True

    def answer(self, request):
        try:
            return self.server.handle(request)
        except Refusal as refusal:
            request.note["reason"] = refusal.reason
            return Answer.refusal(refusal)
        except Exception:  # noqa: BLE001 - a mistake of the test server must be seen, and is no answer of Oracle's
            request.note["reason"] = traceback.format_exc()
            return Answer.json({"code": "TestServerBroken", "message": traceback.format_exc()}, 599)

    def record(self, request, status, code, fault=None):
        if not self.server.logged:
            return
        entry = {
            "service": self.server.name,
            "method": request.method,
            "path": request.target,
            "status": status,
            "code": code,
            "principal": None,
            "key": None,
            "at": self.server.world.now(),
            "fed": None,
            "fault": fault.kind if fault else None,
            "agent": request.header("user-agent"),
            "request_id": request.header("opc-request-id"),
            **request.note,
        }
        self.server.world.record(entry)
        if self.server.log:
            self.server.log(json.dumps(entry))

    def head(self, answer, length):
        """Status line and headers."""
        self.send_response_only(answer.status)
        headers = {
            "date": formatdate(self.server.world.now(), usegmt=True),
            "opc-request-id": self.headers.get("opc-request-id") or os.urandom(16).hex().upper(),
            **answer.headers,
        }
        if length is not None:
            headers["content-length"] = str(length)
        if self.close_connection:
            headers["connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, answer):
        self.head(answer, len(answer.body))
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()


def tls_context(certificate_file, key_file):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate_file, key_file)
    return context
