"""LlamaIndex's OpenAILike: complete, chat, both streamed, at once."""

import asyncio

from expected import ANSWER, MODEL, QUESTION, V1
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

common = {"model": MODEL, "api_base": V1, "api_key": "none", "temperature": 0.0, "max_retries": 0, "context_window": 256}
for chats in (True, False):
    llm = OpenAILike(is_chat_model=chats, max_tokens=16, **common)
    assert llm.complete(QUESTION).text == ANSWER
    assert [*llm.stream_complete(QUESTION)][-1].text == ANSWER
llm = OpenAILike(is_chat_model=True, **common)
question = [ChatMessage(role="user", content=QUESTION)]
assert llm.chat(question).message.content == ANSWER
assert [*llm.stream_chat(question)][-1].message.content == ANSWER


async def many() -> set[str]:
    return {answer.text for answer in await asyncio.gather(*[llm.acomplete(QUESTION) for _ in range(20)])}


assert asyncio.run(many()) == {ANSWER}
print("complete and chat, whole and streamed, 20 at once")
