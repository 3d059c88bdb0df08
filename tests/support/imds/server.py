"""An EC2 instance metadata service for tests, with the one property that matters here: the IP TTL of its answers to the
token PUT is the instance's hop limit, set on the accepted socket just before the answer is written. Nothing else carries it:
the handshake and every other answer leave with the system's own TTL (EC2 user guide, "Use IMDSv2").

    python server.py ADDRESS PORT STATE.json

STATE.json is read at every request, so a test changes the service by writing it anew:

    {"hop_limit": 1, "tokens": "required" | "optional", "enabled": true, "delay": 0, "role": true, "blackhole": false}

Requests are appended to STATE.json.log, one JSON object a line. Ends when standard input is closed.
"""

import json
import os
import socket
import sys
import threading
import time

ROLE = "node-role"
TOKEN = "AQAAAtoken-of-the-test=="
LIFE = 3600


def state(path):
    settings = {
        "hop_limit": 1,
        "tokens": "required",
        "enabled": True,
        "delay": 0,
        "role": True,
        "blackhole": False,
    }
    try:
        with open(path) as file:
            settings.update(json.load(file))
    except (OSError, ValueError):
        pass  # Being written this moment: the next request sees it.
    return settings


def answer(status, body="", headers=()):
    reason = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}[status]
    lines = [f"HTTP/1.1 {status} {reason}", "Server: EC2ws", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def credentials():
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + LIFE))
    return json.dumps({
        "Code": "Success",
        "LastUpdated": end,
        "Type": "AWS-HMAC",
        "AccessKeyId": "ASIAFROMIMDS00000000",
        "SecretAccessKey": "secret-of-the-node",
        "Token": "session-of-the-node",
        "Expiration": end,
    })


def respond(method, path, headers, settings):
    """The answer, and whether it is one to the token PUT."""
    if not settings["enabled"]:
        return answer(403), False
    if method == "PUT":
        if path != "/latest/api/token":
            return answer(404), False
        ttl = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            return answer(400), True
        return answer(200, TOKEN, [("X-aws-ec2-metadata-token-ttl-seconds", ttl)]), True
    token = headers.get("x-aws-ec2-metadata-token")
    if token != TOKEN and (token is not None or settings["tokens"] == "required"):
        return answer(401), False
    base = "/latest/meta-data/iam/security-credentials/"
    if path in (base, base.rstrip("/")) and settings["role"]:
        return answer(200, ROLE), False
    if path == base + ROLE and settings["role"]:
        return answer(200, credentials()), False
    if path == "/latest/meta-data/placement/region":
        return answer(200, "us-east-1"), False
    if path in ("/latest/meta-data", "/latest/meta-data/"):
        return answer(200, "iam/\nplacement/"), False
    return answer(404), False


def serve(connection, path):
    with connection:
        connection.settimeout(30)
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(4096)
            if not more or len(data) > 65536:
                return
            data += more
        head = data.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in head[1:])}
        settings = state(path)
        with open(path + ".log", "a") as log:
            known = headers.get("x-aws-ec2-metadata-token") == TOKEN
            log.write(json.dumps({"method": method, "path": target, "token": known}) + "\n")
        if settings["blackhole"]:
            time.sleep(30)
            return
        time.sleep(settings["delay"])
        reply, is_token = respond(method, target, headers, settings)
        if is_token:
            limit = int(settings["hop_limit"])
            if connection.family == socket.AF_INET6:
                connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, limit)
            else:
                connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, limit)
        connection.sendall(reply)
        connection.shutdown(socket.SHUT_WR)
        try:
            connection.recv(1)  # Until the client is done, or the answer is known never to arrive.
        except OSError:
            pass


def main():
    address, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((address, port))
    listener.listen(128)
    print("ready", flush=True)

    def accept():
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=quietly, args=(connection, path), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


def quietly(connection, path):
    try:
        serve(connection, path)
    except (OSError, ValueError):
        pass  # A client that went away.


if __name__ == "__main__":
    main()
