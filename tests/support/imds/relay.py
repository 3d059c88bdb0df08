"""Carries TCP connections out of a network namespace, where loopback is another loopback: the apiserver and the KMS of a
test listen on the machine's own.

    python relay.py outside SOCKET            on the machine: connects to 127.0.0.1:PORT, as each connection asks
    python relay.py inside SOCKET PORT...     in the namespace: listens on 127.0.0.1:PORT, or for ADDRESS:OTHER=PORT there

The two meet at a Unix socket, which namespaces of the network do not divide. Ends when standard input is closed.
"""

import os
import socket
import sys
import threading


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def join(one, other):
    with one, other:
        back = threading.Thread(target=pump, args=(other, one), daemon=True)
        back.start()
        pump(one, other)
        back.join()


def accept(listener, handle):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=handle, args=(connection,), daemon=True).start()


def outside(path):
    def handle(connection):
        wanted = b""
        while not wanted.endswith(b"\n"):
            wanted += connection.recv(1)
        try:
            join(connection, socket.create_connection(("127.0.0.1", int(wanted))))
        except OSError:
            connection.close()

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(128)
    threading.Thread(target=accept, args=(listener, handle), daemon=True).start()


def inside(path, listen, port):
    def handle(connection):
        beyond = socket.socket(socket.AF_UNIX)
        beyond.connect(path)
        beyond.sendall(f"{port}\n".encode())
        join(connection, beyond)

    listener = socket.create_server(listen)
    threading.Thread(target=accept, args=(listener, handle), daemon=True).start()


def main():
    side, path, *ports = sys.argv[1:]
    if side == "outside":
        outside(path)
    else:
        for port in ports:
            listen, _, port = port.rpartition("=")
            address, _, other = listen.rpartition(":")
            inside(path, (address or "127.0.0.1", int(other or port)), int(port))
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
