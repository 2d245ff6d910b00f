"""Pydantic AI's Agent: whole, streamed, with a history; what an agent with tools is told."""

import asyncio

from expected import ANSWER, MODEL, QUESTION, V1
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=V1, api_key="none"))
agent = Agent(model, model_settings={"temperature": 0.0, "max_tokens": 10, "seed": 1})


async def all_of_it() -> None:
    whole = await agent.run(QUESTION)
    assert whole.output == ANSWER, whole
    # A property now, a method before.
    used = whole.usage() if callable(whole.usage) else whole.usage
    assert used.output_tokens > 0, used
    async with agent.run_stream(QUESTION) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True)]
    assert "".join(pieces) == ANSWER, pieces
    again = await agent.run(QUESTION, message_history=whole.all_messages())
    assert again.output is not None
    with_tools = Agent(model)
    with_tools.tool_plain(add_one)
    try:
        await with_tools.run(QUESTION)
        raise AssertionError("tools were taken")
    except ModelHTTPError as error:
        assert error.status_code == 400 and "tools" in str(error), error


def add_one(a: int) -> int:
    """Adds one."""
    return a + 1


asyncio.run(all_of_it())
print("run, run_stream, a history; tools are refused by name")
