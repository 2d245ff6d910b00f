"""OpenAI's Python package and httpx against a server: python_client.py BASE_URL MODEL."""

import asyncio
import json
import sys

import httpx
import openai

QUESTION = "What is 17 + 25?"
ANSWER = "42"
GREEDY = {"temperature": 0, "max_tokens": 10}


def completions(client: openai.OpenAI, model: str) -> None:
    """Whole, several, of token ids, streamed."""
    one = client.completions.create(model=model, prompt=QUESTION, **GREEDY)
    assert one.choices[0].text == ANSWER, one
    assert one.choices[0].finish_reason == "stop", one
    assert one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens, one
    several = client.completions.create(model=model, prompt=[QUESTION, "What is 2 + 3?"], n=2, echo=True, **GREEDY)
    expected = [f"{QUESTION}{ANSWER}"] * 2 + ["What is 2 + 3?5"] * 2
    assert [choice.text for choice in several.choices] == expected, several
    ids = client.completions.create(model=model, prompt=[5, 6, 7], **GREEDY)
    assert ids.usage.prompt_tokens == 3, ids
    stopped = client.completions.create(model=model, prompt=QUESTION, stop=["2"], **GREEDY)
    assert stopped.choices[0].text == "4", stopped
    pieces = client.completions.create(
        model=model, prompt=QUESTION, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(pieces)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == ANSWER, chunks
    assert chunks[-1].usage.completion_tokens == one.usage.completion_tokens, chunks[-1]


def chats(client: openai.OpenAI, model: str) -> None:
    """Whole, several answers, streamed."""
    messages = [{"role": "system", "content": "You add."}, {"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(model=model, messages=messages, n=2, **GREEDY)
    assert [choice.message.role for choice in whole.choices] == ["assistant"] * 2, whole
    assert whole.choices[0].message.content == whole.choices[1].message.content, whole
    assert whole.usage.completion_tokens > 0, whole
    pieces = list(client.chat.completions.create(model=model, messages=messages, stream=True, **GREEDY))
    assert pieces[0].choices[0].delta.role == "assistant", pieces[0]
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content, (text, whole)
    assert pieces[-1].choices[0].finish_reason in ("stop", "length"), pieces[-1]
    with client.chat.completions.stream(model=model, messages=messages, **GREEDY) as stream:
        told = [event.delta for event in stream if event.type == "content.delta"]
    assert "".join(told) == text, told
    # Nothing is said of sampling or length: OpenAI's own defaults.
    plain = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=5)
    assert plain.choices[0].message.content is not None, plain


def models(client: openai.OpenAI, model: str) -> None:
    """The list, one, and one that is not there."""
    assert model in [found.id for found in client.models.list()], model
    assert client.models.retrieve(model).id == model
    fails(openai.NotFoundError, "model", lambda: client.models.retrieve("no/such model"))


def errors(client: openai.OpenAI, model: str) -> None:
    """Each is the exception that the package has for it."""
    ask = client.completions.create
    fails(openai.NotFoundError, "model", lambda: ask(model="none", prompt="a"))
    fails(openai.BadRequestError, "max_tokens", lambda: ask(model=model, prompt="a", max_tokens=10**6))
    fails(openai.BadRequestError, "seed", lambda: ask(model=model, prompt="a", seed=1))
    fails(openai.BadRequestError, "temperature", lambda: ask(model=model, prompt="a", temperature=9))
    tools = [{"type": "function", "function": {"name": "f"}}]
    messages = [{"role": "user", "content": "a"}]
    chat = client.chat.completions.create
    fails(openai.BadRequestError, "tools", lambda: chat(model=model, messages=messages, tools=tools))
    fails(openai.BadRequestError, "messages", lambda: chat(model=model, messages=[]))


def fails(kind: type, param: str, ask) -> None:
    """The call fails by this exception, which names the field and the request."""
    try:
        ask()
    except kind as error:
        assert error.param == param, error
        assert error.code and error.type == "invalid_request_error", error
        assert error.request_id, error
        return
    raise AssertionError(f"no {kind.__name__} for {param}")


async def at_once(url: str, model: str) -> None:
    """Many at once, whole and streamed."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:

        async def whole() -> str:
            answer = await client.completions.create(model=model, prompt=QUESTION, **GREEDY)
            return answer.choices[0].text

        async def streamed() -> str:
            pieces = await client.completions.create(model=model, prompt=QUESTION, stream=True, **GREEDY)
            return "".join([piece.choices[0].text async for piece in pieces])

        answers = await asyncio.gather(*[ask() for _ in range(20) for ask in (whole, streamed)])
        assert answers == [ANSWER] * 40, answers


def with_httpx(url: str) -> None:
    """The endpoints of one's own: whole, and as events."""
    with httpx.Client(base_url=url) as client:
        whole = client.post("/generate", json={"text": [QUESTION, QUESTION]}).raise_for_status().json()
        assert whole["text"] == [ANSWER, ANSWER], whole
        with client.stream("POST", "/generate_stream", json={"text": QUESTION}) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
        events = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert "".join(event["text"] for event in events) == ANSWER, events
        assert events[-1]["finish_reason"] == "stop", events


def main() -> None:
    url, model = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    completions(client, model)
    chats(client, model)
    models(client, model)
    errors(client, model)
    asyncio.run(at_once(url, model))
    with_httpx(url)
    print("all well")


if __name__ == "__main__":
    main()
