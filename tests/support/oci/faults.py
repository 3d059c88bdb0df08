"""Scripted misbehaviour of any listener: what networks, proxies and services do on a bad day."""

import json
import threading
import time

from transport import Answer, Hangup
from world import Refusal

KINDS = (
    "status",
    "garbage",
    "noise",
    "truncated",
    "large",
    "drop",
    "silent",
    "redirect",
    "echo",
    "slow",
    "empty",
)
SERVICES = ("crypto", "management", "federation", "metadata", "oke")
LARGE = 10 * 1024 * 1024


class Fault:
    def __init__(self, world, elsewhere, given):
        self.world, self.elsewhere, self.given = world, elsewhere, given
        self.kind, self.times, self.skip = given["kind"], given.get("times", 1), given.get("skip", 0)
        self.cleared = threading.Event()

    def fits(self, service, request):
        return service == self.given["service"] and self.given.get("path", "") in request.target

    def before(self, connection, request):
        """An answer instead of the handler's; None lets the handler answer."""
        make = getattr(self, "_" + self.kind, None)
        answer = make(connection, request) if make else None
        if answer:
            answer.headers.update(self.given.get("headers", {}))
        return answer

    def after(self, connection, answer):
        """What happens on the way out."""
        if self.kind == "slow":
            self._wait(self.given.get("seconds", 5))
        if self.kind == "truncated":
            connection.head(answer, len(answer.body) + 2)
            connection.wfile.write(answer.body[: len(answer.body) // 2])
            connection.wfile.flush()
            raise Hangup
        if self.kind == "large" and self.given.get("chunked"):
            connection.head(Answer(answer.status, b"", {**answer.headers, "transfer-encoding": "chunked"}), None)
            for start in range(0, len(answer.body), 65536):
                piece = answer.body[start : start + 65536]
                connection.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            connection.wfile.write(b"0\r\n\r\n")
            connection.wfile.flush()
            raise Hangup

    def _wait(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.world.ending.is_set():
            if self.cleared.wait(min(0.5, max(0, end - time.monotonic()))):
                return

    def _error(self, status, code, message):
        answer = Answer.json({"code": code, "message": message}, status)
        answer.code = code
        return answer

    def _status(self, _connection, _request):
        status = self.given.get("status", 500)
        code = self.given.get("code", "InternalServerError" if status >= 500 else "InvalidParameter")
        return self._error(status, code, self.given.get("message", "scripted"))

    def _garbage(self, _connection, _request):
        text = self.given.get("message", "<html><body>not what you asked for</body></html>")
        return Answer.text(text, self.given.get("status", 200), "text/html")

    def _noise(self, connection, request):
        connection.record(request, None, None, self)
        connection.wfile.write(b"\x16\x03\x01 this is no HTTP\x00\xff\r\n\r\n")
        connection.wfile.flush()
        raise Hangup

    def _large(self, _connection, _request):
        return Answer.json({"message": "x" * LARGE}, self.given.get("status", 200))

    def _empty(self, _connection, _request):
        return Answer(self.given.get("status", 200), b"", {})

    def _drop(self, connection, request):
        connection.record(request, None, None, self)
        raise Hangup

    def _silent(self, connection, request):
        connection.record(request, None, None, self)
        self._wait(self.given.get("seconds", 120))
        raise Hangup

    def _redirect(self, _connection, _request):
        answer = self._error(self.given.get("status", 307), "Redirect", "elsewhere")
        # Whoever follows is seen there, with all that was sent along.
        answer.headers["location"] = self.elsewhere()
        return answer

    def _echo(self, _connection, request):
        said = {"request": f"{request.method} {request.target}", "headers": request.headers}
        message = f"{json.dumps(said)} {request.body.decode(errors='replace')}"
        status = self.given.get("status", 400)
        code = self.given.get("code", "InternalServerError" if status >= 500 else "InvalidParameter")
        return self._error(status, code, message)


class Faults:
    def __init__(self, world, elsewhere):
        self._world, self._elsewhere = world, elsewhere
        self._lock = threading.Lock()
        self._faults = []

    def add(self, given):
        if given.get("kind") not in KINDS or given.get("service") not in SERVICES:
            raise Refusal(400, "InvalidParameter", f"kind is one of {KINDS}, service one of {SERVICES}")
        with self._lock:
            self._faults.append(Fault(self._world, self._elsewhere, given))

    def clear(self):
        with self._lock:
            for fault in self._faults:
                fault.cleared.set()
            self._faults.clear()

    def take(self, service, request):
        """The first fault that fits, one time fewer."""
        with self._lock:
            for fault in self._faults:
                if not fault.fits(service, request) or fault.times == 0:
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                # Spent faults stay, so that clearing them wakes who still waits in one.
                fault.times -= fault.times > 0
                return fault
        return None
