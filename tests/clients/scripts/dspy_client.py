"""DSPy's LM: chats and completions, several answers, sampling."""

import dspy
from expected import ANSWER, MODEL, QUESTION, V1

common = {"api_base": V1, "api_key": "none", "cache": False, "num_retries": 0, "max_tokens": 16}
chat = dspy.LM(f"openai/{MODEL}", temperature=0.0, **common)
texts = dspy.LM(f"text-completion-openai/{MODEL}", model_type="text", temperature=0.0, **common)


def text(answer: str | dict) -> str:
    """The answer, which is a dictionary if there is more to it than the text."""
    return answer["text"] if isinstance(answer, dict) else answer


assert text(chat(QUESTION)[0]) == ANSWER
assert text(texts(QUESTION)[0]).strip()
assert len(chat(QUESTION, n=3, temperature=0.7)) == 3
logged = chat(QUESTION, logprobs=True)
assert logged[0]["logprobs"], logged
print("chats, completions, n, logprobs")
