"""The address to serve HTTP on, in the forms that the proxy takes too."""

import ipaddress
import socket
from dataclasses import dataclass

from pillion.failure import BAD_FLAG, UNAVAILABLE, Failure

DEFAULT = "127.0.0.1:8080"


@dataclass(frozen=True)
class Address:
    """An IP address and a port from 0 to 65535; 0 means any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        host = {"0.0.0.0": "localhost", "::": "localhost", "127.0.0.1": "localhost"}.get(self.host)
        return f"http://{host}:{self.port}" if host else f"http://{self}"


def parse(text: str) -> Address:
    """Reads `ADDRESS:PORT`, `[ADDRESS]:PORT`, `localhost:PORT`, `PORT` (on 127.0.0.1) or `:PORT` (on all addresses).

    Raises:
        Failure: it is none of these.
    """
    host, colon, port = text.rpartition(":")
    host = {"": "0.0.0.0" if colon else "127.0.0.1", "localhost": "127.0.0.1"}.get(host, host)
    try:
        if host.startswith("["):
            host = str(ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]")))
        else:
            host = str(ipaddress.IPv4Address(host))
        if not (port.isascii() and port.isdigit()) or int(port) > 65535 or "%" in host:
            raise ValueError(port)
    except ValueError:
        allowed = "an address and a port such as 127.0.0.1:8080, localhost:8080, :8080 or 8080"
        raise Failure(f"--listen does not take {text!r}, only {allowed}", BAD_FLAG) from None
    return Address(host, int(port))


def bind(address: Address) -> tuple[socket.socket, Address]:
    """Takes the address, without listening yet; says which port it has.

    Raises:
        Failure: it is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
    except OSError as error:
        listener.close()
        raise refused(address, error) from None
    return listener, Address(address.host, listener.getsockname()[1])


def refused(address: Address, error: OSError) -> Failure:
    """The address cannot be had."""
    return Failure(f"cannot listen on {address}: {error.strerror}; --listen takes another address or port", UNAVAILABLE)
