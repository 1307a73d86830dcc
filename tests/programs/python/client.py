"""A client of HTTP/1.1 by Python's http.client and urllib, for the end-to-end tests.

client.py BASE SHA256 DEEDS: asks for all that the servers of these tests have below BASE and verifies each answer; DEEDS: of early those that the server does.
"""

import hashlib
import http.client
import os
import sys
import urllib.parse
import urllib.request

REQUESTS = 20
UPLOAD = 3 << 20
REFUSED = 8 << 20
PIECE = 100_000

base, sha256, deeds = sys.argv[1:]
parts = urllib.parse.urlsplit(base)


def connect():
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)


def ask(connection, method, path, **more):
    connection.request(method, parts.path + path, **more)
    answer = connection.getresponse()
    return answer.status, answer.read()


def check(condition, what):
    if not condition:
        sys.exit(f"wrong: {what}")


def keep_alive():
    connection = connect()
    connection.connect()
    first = connection.sock
    for _ in range(REQUESTS):
        status, body = ask(connection, "GET", "/small")
        check((status, body) == (200, b"x" * 1000), f"small: {status}, {len(body)} bytes")
        check(connection.sock is first, "the connection was closed")
    status, body = ask(connection, "HEAD", "/small")
    check((status, body) == (200, b"") and connection.sock is first, f"HEAD: {status}")


def large():
    status, body = ask(connect(), "GET", "/large")
    check(status == 200 and hashlib.sha256(body).hexdigest() == sha256, f"large: {status}, {len(body)} bytes")
    with urllib.request.urlopen(base + "/large", timeout=60) as answer:
        check(hashlib.sha256(answer.read()).hexdigest() == sha256, "large, by urllib")


def upload(path, wrap):
    sent = os.urandom(UPLOAD)
    connection = connect()
    status, got = ask(connection, "PUT", path, body=wrap(sent))
    if status in (201, 204):
        # It was put into a file.
        status, got = ask(connection, "GET", path)
    check(status == 200 and got == sent, f"{path}: {status}, {len(got)} bytes")


def pieces(body):
    return (body[at : at + PIECE] for at in range(0, len(body), PIECE))


def early():
    connection = connect()
    try:
        connection.request("PUT", parts.path + "/early", body=bytes(REFUSED))
    except BrokenPipeError:
        # Who answers early may also stop reading.
        pass
    answer = connection.getresponse()
    check(answer.status == 413, f"early: {answer.status}")


keep_alive()
large()
upload("/kept-length", lambda body: body)
# What comes piece by piece is sent in chunks.
upload("/kept-chunked", pieces)
if "early" in deeds:
    early()
print("all as it should be")
