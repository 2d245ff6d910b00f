"""Many clients at once, each with a connection of its own and one request: for what a queue of them weighs."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

from stacks import Unfit

CONNECTING = 50
"""Connections made at a time: a listener's backlog has an end."""
LIMIT = 60.0
"""Seconds that the whole crowd may take to be answered."""


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, body: bytes) -> None:
        head = (
            f"POST /generate HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        self.writer.write(f"{head}\r\n\r\n".encode() + body)
        await self.writer.drain()

    async def status(self) -> int:
        """Reads a whole answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        [length] = [line.partition(":")[2] for line in head.split("\r\n") if line.startswith("content-length:")]
        await self.reader.readexactly(int(length))
        return int(head.split(" ", 2)[1])

    async def close(self) -> None:
        self.writer.close()


async def crowd(url: str, clients: int, body: bytes, queued: Callable[[], Awaitable[None]]) -> None:
    """Lets all connect, then all ask, then awaits `queued`, which must see to it that they are answered."""
    async with asyncio.timeout(LIMIT), AsyncExitStack() as leaving:
        address = urlsplit(url)
        everyone: list[Client] = []
        for start in range(0, clients, CONNECTING):
            count = min(CONNECTING, clients - start)
            opening = [asyncio.open_connection(address.hostname, address.port) for _ in range(count)]
            for streams in await asyncio.gather(*opening):
                everyone.append(Client(*streams))
                leaving.push_async_callback(everyone[-1].close)
        await asyncio.gather(*(client.send(body) for client in everyone))
        await queued()
        statuses = await asyncio.gather(*(client.status() for client in everyone))
    wrong = sum(status != 200 for status in statuses)
    if wrong:
        raise Unfit(f"{wrong} of {clients} queued requests were not answered with 200")
