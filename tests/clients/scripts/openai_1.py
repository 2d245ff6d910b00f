"""OpenAI's Python package of 2023: completions, chats, streams, several answers, models, errors."""

import asyncio

import openai
from expected import ANSWER, MESSAGES, MODEL, QUESTION, V1

client = openai.OpenAI(base_url=V1, api_key="none", max_retries=0)

whole = client.completions.create(model=MODEL, prompt=QUESTION, temperature=0)
assert whole.choices[0].text == ANSWER, whole
pieces = list(client.completions.create(model=MODEL, prompt=QUESTION, temperature=0, n=2, stream=True))
for index in (0, 1):
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices[0].index == index) == ANSWER, pieces

chat = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, seed=1)
assert chat.choices[0].message.content == ANSWER, chat
pieces = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, stream=True))
assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == ANSWER, pieces
history = [*MESSAGES, {"role": "assistant", "content": None}, {"role": "user", "content": QUESTION, "name": "ada"}]
assert client.chat.completions.create(model=MODEL, messages=history, temperature=0).choices

assert MODEL in [model.id for model in client.models.list()]
try:
    client.embeddings.create(model=MODEL, input="a")
    raise AssertionError("embeddings were answered")
except openai.NotFoundError:
    pass


async def many() -> set[str]:
    client = openai.AsyncOpenAI(base_url=V1, api_key="none", max_retries=0)
    ask = client.completions.create
    answers = await asyncio.gather(*[ask(model=MODEL, prompt=QUESTION, temperature=0) for _ in range(40)])
    return {answer.choices[0].text for answer in answers}


assert asyncio.run(many()) == {ANSWER}
print("completions, chats, streams, seed, 40 at once")
