"""A real HTTP server of a folder that reads ranges, as stores do, and that can be busy."""

import http.server
import threading
from pathlib import Path


class RangeServer:
    """Answers 503 to so many requests of some methods, 404 to what is not there, and 403 with a code of S3's to what is denied."""

    def __init__(self, folder):
        self.folder, self.busy, self.methods = Path(folder), 0, ("HEAD", "GET")
        self.denied = {}  # path -> code
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                file = server.folder / self.path.lstrip("/")
                if server.busy > 0 and self.command in server.methods:
                    server.busy -= 1
                    self.answer(503, b"")
                elif code := server.denied.get(self.path):
                    self.answer(403, f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode())
                elif not file.is_file():
                    self.answer(404, b"")
                else:
                    content = file.read_bytes()
                    if wanted := self.headers.get("Range"):
                        first, last = wanted.removeprefix("bytes=").split("-")
                        begin, end = int(first), min(int(last or len(content)), len(content) - 1) + 1
                        self.answer(206, content[begin:end], ("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}"))
                    else:
                        self.answer(200, content)

            do_HEAD = do_GET

            def answer(self, status, content, *headers):
                self.send_response(status)
                for name, value in [("Content-Length", str(len(content))), ("Accept-Ranges", "bytes"), *headers]:
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
