"""LangChain's ChatOpenAI and OpenAI: whole, streamed, in a batch, log probabilities, token counts."""

from expected import ANSWER, MODEL, QUESTION, V1
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI

common = {"base_url": V1, "api_key": "none", "model": MODEL, "temperature": 0, "max_retries": 0}
chat = ChatOpenAI(seed=1, **common)
whole = chat.invoke(QUESTION)
assert whole.content == ANSWER, whole
assert whole.usage_metadata["total_tokens"] > 0, whole
assert "".join(piece.content for piece in chat.stream(QUESTION)) == ANSWER
assert [answer.content for answer in chat.batch([QUESTION] * 40)] == [ANSWER] * 40
text = OpenAI(max_tokens=10, **common)
assert text.invoke(QUESTION) == ANSWER
assert "".join(text.stream(QUESTION)) == ANSWER
called = AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "c1"}])
history = [HumanMessage("hello"), called, ToolMessage("42", tool_call_id="c1"), HumanMessage(QUESTION)]
assert chat.invoke(history).content is not None
logged = chat.bind(logprobs=True).invoke(QUESTION)
assert logged.response_metadata["logprobs"]["content"], logged
print("ChatOpenAI and OpenAI: whole, streams, a batch of 40, a history with tools, logprobs")
