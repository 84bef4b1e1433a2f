"""`consistune play`: a page in the browser to try a model."""

import errno
import socket
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from consistune.cli.options import Device, pick_device
from consistune.errors import UserError

HOST, PORT = "127.0.0.1", 7860


def play(
    model: Annotated[
        Path | None,
        Argument(help="A model's folder, a run's folder, or a built-in model's name; default: all built-in."),
    ] = None,
    teacher: Annotated[
        Path | None, Option(help="The diffusion model that it was tuned from, shown beside it.")
    ] = None,
    host: Annotated[
        str, Option(help="The address to answer on; 0.0.0.0: everybody in the network can use the page.")
    ] = HOST,
    port: Annotated[int, Option(help="The port to answer on.")] = PORT,
    open_browser: Annotated[
        bool, Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Try a model in the browser: seed, class, steps, guidance, interpolation. Ctrl-C ends it.

    Needs Gradio: pip install "consistune\\[play]".
    """
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio", "play", 'pip install "consistune[play]"')
    if teacher is not None and model is None:
        raise UserError("belongs to a model", "--teacher", "name the model, too")
    check_address(host, port)
    from consistune.evaluation.play import Playground
    from consistune.models import built_in

    place = pick_device(device)
    names = [str(model)] if model is not None else built_in()
    games = [Playground.open(name, None if teacher is None else str(teacher), place) for name in names]
    from consistune.evaluation import play_page

    address = play_page.serve(play_page.page(games), host, port)
    print(f"{address} (Ctrl-C ends it)", flush=True)
    if open_browser:
        import webbrowser

        webbrowser.open(address)
    threading.Event().wait()


def check_address(host: str, port: int) -> None:
    """Raises UserError where no server can answer there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"{host!r} is no address of this machine", "--host", f"use {HOST}") from error
    with socket.socket(family, kind, protocol) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(address)
        except OSError as error:
            what = f"cannot answer on {host}:{port} ({error.strerror})"
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(what, "--host", f"use {HOST}") from error
            raise UserError(what, "--port", f"use another one, --port {port % 65535 + 1}") from error
