"""LiteLLM's Python package: chats, streams, completions, its own word for a prompt that is too long."""

import asyncio

import litellm
from expected import ANSWER, MESSAGES, MODEL, QUESTION, V1

target = {"model": f"openai/{MODEL}", "api_base": V1, "api_key": "none", "temperature": 0}

chat = litellm.completion(messages=MESSAGES, seed=1, user="ada", metadata={"a": "b"}, **target)
assert chat.choices[0].message.content == ANSWER, chat
assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens, chat
options = {"include_usage": True}
pieces = list(litellm.completion(messages=MESSAGES, stream=True, stream_options=options, **target))
assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == ANSWER, pieces
text_target = target | {"model": f"text-completion-openai/{MODEL}"}
text = litellm.text_completion(prompt=QUESTION, **text_target)
assert text.choices[0].text == ANSWER, text


async def many() -> set[str]:
    answers = await asyncio.gather(*[litellm.acompletion(messages=MESSAGES, **target) for _ in range(20)])
    return {answer.choices[0].message.content for answer in answers}


assert asyncio.run(many()) == {ANSWER}
try:
    litellm.completion(messages=[{"role": "user", "content": "word " * 5000}], **target)
    raise AssertionError("a prompt that is too long was answered")
except litellm.ContextWindowExceededError:
    pass
logged = litellm.completion(messages=MESSAGES, logprobs=True, **target)
assert logged.choices[0].logprobs.content, logged
print("chats, streams, completions, 20 at once, ContextWindowExceededError, logprobs")
