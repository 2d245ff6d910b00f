"""huggingface_hub's InferenceClient: chat_completion and its OpenAI form, whole and streamed; what text_generation is told."""

from expected import ANSWER, MESSAGES, MODEL, QUESTION, URL, V1
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

# With /v1 and without it.
for address in (V1, URL):
    client = InferenceClient(base_url=address, api_key="none")
    whole = client.chat_completion(MESSAGES, model=None, temperature=0.0, max_tokens=10, seed=1)
    assert whole.choices[0].message.content == ANSWER, whole
    pieces = list(client.chat.completions.create(MESSAGES, model=MODEL, temperature=0.0, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == ANSWER, pieces
logged = client.chat_completion(MESSAGES, temperature=0.0, logprobs=True)
assert logged.choices[0].logprobs.content, logged
try:
    InferenceClient(model=f"{URL}/generate").text_generation(QUESTION, max_new_tokens=10)
    raise AssertionError("TGI's form was answered")
except HfHubHTTPError as error:
    said = error.response.text
    assert "text" in said and "inputs" in said, said
print("chat_completion and chat.completions, whole and streamed, logprobs; TGI's text_generation is told the names to use")
