"""Ports of this machine for processes that meet."""

import socket


def free_port() -> str:
    """A port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])
