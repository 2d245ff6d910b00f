"""How the built-in model's chats are written: its template, and the special tokens that the template writes."""

from collections.abc import Sequence
from typing import TypedDict

from jinja2.sandbox import ImmutableSandboxedEnvironment

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
"""`EOS` ends the answer to a plain prompt."""
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
"""`END` ends each message of a chat, and so also the answer."""
SPECIAL_TOKENS = [UNK, BOS, EOS, SYSTEM, USER, ASSISTANT, END]
"""A special token's id is its place in this list."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# Hugging Face's tokenizers set up their environment in the same way.
_template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE)


class Message(TypedDict):
    """One message of a chat, as the OpenAI API has it."""

    role: str
    content: str


def written(messages: Sequence[Message], *, answer_follows: bool) -> str:
    """The chat as one text. `answer_follows` adds the beginning of the assistant's next message."""
    return _template.render(messages=messages, bos_token=BOS, add_generation_prompt=answer_follows)
