"""A small web service: GET /picture?seed=3&label=1&steps=2 gives a PNG, GET / says what may be asked.

    python service.py MODEL --port 8000

It needs nothing but consistune. Put a proxy with TLS and limits before it where others can reach it.
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import consistune
from consistune.errors import UserError
from consistune.pages.pictures import png_bytes

LIMITS = {"seed": (1 << 62) - 1, "steps": 4}


def make_server(path: str, host: str, port: int) -> ThreadingHTTPServer:
    """A server that draws with the model at `path`; `serve_forever` starts it."""
    model = consistune.load(path)
    limits = LIMITS | ({"label": model.num_classes - 1} if model.num_classes else {})
    about = {"model": path, "classes": list(model.card.class_names), "at most": limits}
    one_at_a_time = threading.Lock()

    def draw(query: str) -> bytes:
        given = {name: int(value) for name, value in parse_qsl(query, strict_parsing=bool(query))}
        for name, value in given.items():
            if name not in limits or not (name == "steps") <= value <= limits[name]:
                raise ValueError(f"{name}={value} cannot be asked for: see /")
        with one_at_a_time:
            images = consistune.sample(
                model, [given.get("seed", 0)], given.get("steps", 1), given.get("label")
            )
        return png_bytes(images[0])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path == "/":
                self.answer(200, "application/json", json.dumps(about).encode())
            elif url.path == "/picture":
                try:
                    self.answer(200, "image/png", draw(url.query))
                except (ValueError, UserError) as error:
                    self.answer(400, "text/plain; charset=utf-8", str(error).encode())
            else:
                self.send_error(404)

        def answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer((host, port), Handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve pictures of a model.")
    parser.add_argument("model", help="a model's folder, or a built-in model's name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    make_server(options.model, options.host, options.port).serve_forever()
