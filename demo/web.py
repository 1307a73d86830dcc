"""One version of the web service where there is no nginx: the pages of a folder, and /slow, a download that takes a minute.

usage: web.py ADDRESS PORT FOLDER
"""

import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

CHUNK = 4096
PAUSE_SECONDS = 0.25


class Pages(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/slow":
            self.drip(Path(self.directory, "photo.bin").read_bytes())
        else:
            super().do_GET()

    def drip(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        never = threading.Event()
        for start in range(0, len(body), CHUNK):
            self.wfile.write(body[start : start + CHUNK])
            never.wait(PAUSE_SECONDS)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self):
        """Without the base class's question to DNS for the name of this address."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address

    def handle_error(self, *_):
        """A client that goes in the middle of a download is part of the show."""


address, port, folder = sys.argv[1:]
Server((address, int(port)), partial(Pages, directory=folder)).serve_forever()
