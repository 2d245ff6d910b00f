"""The home-made server that Pillion is compared with: one Python process that batches in an asyncio queue.

A batch goes to the engine when it is full or when its first request has waited the timeout, whichever comes first.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from model import Answer, Model


class GenerateRequest(BaseModel):
    text: str
    max_new_tokens: int = Field(default=128, ge=1)


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class GenerateResponse(BaseModel):
    text: str
    usage: Usage


@dataclass(frozen=True)
class Pending:
    """A request that waits for its batch; the future gets its answer."""

    request: GenerateRequest
    answer: asyncio.Future[Answer]


class Batcher:
    def __init__(self, model: Model, largest: int, timeout: float) -> None:
        """`timeout` is in seconds."""
        self._model = model
        self._largest = largest
        self._timeout = timeout
        self._queue: asyncio.Queue[Pending] = asyncio.Queue()
        self._executor = ThreadPoolExecutor(max_workers=1)

    async def generate(self, request: GenerateRequest) -> Answer:
        pending = Pending(request, asyncio.get_running_loop().create_future())
        await self._queue.put(pending)
        return await pending.answer

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            texts = [pending.request.text for pending in batch]
            limits = [pending.request.max_new_tokens for pending in batch]
            try:
                answers = await loop.run_in_executor(self._executor, self._model.answers, texts, limits)
            except Exception as error:
                for pending in batch:
                    if not pending.answer.done():
                        pending.answer.set_exception(error)
                continue
            for pending, answer in zip(batch, answers, strict=True):
                if not pending.answer.done():
                    pending.answer.set_result(answer)

    async def _next_batch(self) -> list[Pending]:
        batch = [await self._queue.get()]
        try:
            async with asyncio.timeout(self._timeout):
                while len(batch) < self._largest:
                    batch.append(await self._queue.get())
        except TimeoutError:
            pass
        return batch


def application(batcher: Batcher) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    async def ready() -> None:
        return None

    @app.post("/generate")
    async def generate(request: GenerateRequest) -> GenerateResponse:
        answer = await batcher.generate(request)
        usage = Usage(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
        return GenerateResponse(text=answer.text, usage=usage)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--batch", type=int, default=50, help="largest batch")
    parser.add_argument("--timeout-ms", type=float, default=100, help="longest wait for companions")
    parser.add_argument("--threads", type=int, default=1, help="threads of one engine call")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()

    model = Model(arguments.model, arguments.threads, arguments.device)
    batcher = Batcher(model, arguments.batch, arguments.timeout_ms / 1000)
    uvicorn.run(application(batcher), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
