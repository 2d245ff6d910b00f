"""What a family's model is asked, and what it must answer, as `expected.json` has it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ctranslate2
import numpy as np
from jinja2 import TemplateError
from tokenizers import Tokenizer

from family.prompts import NEW_TOKENS, Request, conversations
from family.rendering import Messages

Expected = dict[str, Any]


class Said(NamedTuple):
    """An answer: its tokens, the one that ended it if one did, and the smallest lead of a token over the next best."""

    ids: list[int]
    end: int | None
    margin: float


Engine = Callable[[list[int], int], Said]
"""Greedy decoding of a prompt, to at most so many tokens, the end among them."""
Renderer = Callable[[Messages, dict[str, Any]], str]
BROKEN = "\ufffd"


def python_engine(directory: Path, vocabulary: list[str], ends: list[int]) -> Engine:
    """CTranslate2's own Python package, one request at a time, in float32 and on one thread."""
    generator = ctranslate2.Generator(
        str(directory), device="cpu", compute_type="float32", inter_threads=1, intra_threads=1
    )

    def answer(prompt: list[int], limit: int) -> Said:
        [result] = generator.generate_batch(
            [[vocabulary[token] for token in prompt]],
            beam_size=1,
            sampling_topk=1,
            max_length=limit,
            include_prompt_in_result=False,
            end_token=ends,
            return_end_token=True,
            return_logits_vocab=True,
        )
        best = (np.partition(np.asarray(step), -2)[-2:] for step in result.logits[0])
        ids = result.sequences_ids[0]
        end = ids.pop() if ids[-1] in ends else None
        return Said(ids, end, min(float(first - second) for second, first in best))

    return answer


@dataclass(frozen=True)
class Asked:
    """A model that is asked, and its tokenizer. `rows` is how many ids it has an embedding for."""

    tokenizer: Tokenizer
    rows: int
    engine: Engine

    def completions(self, requests: Iterable[Request]) -> list[Expected]:
        """Texts in which special tokens are texts as others are."""
        return [
            {"text": text, "max_new_tokens": limit, **self._answer(self._encode(text, plain=True), limit)}
            for text, limit in requests
        ]

    def refused(self, texts: Iterable[str]) -> list[str]:
        """Texts of which some token has no row."""
        for text in texts:
            if max(self._encode(text, plain=True)) < self.rows:
                raise ValueError(f"{text!r} has a row for each token")
        return list(texts)

    def chats(self, render: Renderer, options: Iterable[dict[str, Any]]) -> list[Expected]:
        """Conversations as the model's template has them; each once more for each of the `options`."""
        return [
            {"messages": messages, **({"chat_template_kwargs": more} if more else {})}
            | self._chat(render, messages, more)
            for more in ({}, *options)
            for messages in conversations()
        ]

    def _chat(self, render: Renderer, messages: Messages, more: dict[str, Any]) -> Expected:
        try:
            rendered = render(messages, more)
        except TemplateError:
            return {"error": True}
        prompt = self._encode(rendered, plain=False)
        return {"max_new_tokens": NEW_TOKENS, "rendered": rendered, **self._answer(prompt, NEW_TOKENS)}

    def _encode(self, text: str, *, plain: bool) -> list[int]:
        """The ids of a text; a `plain` one begins as the tokenizer lets texts begin, a rendered chat as it is."""
        self.tokenizer.encode_special_tokens = plain
        return self.tokenizer.encode(text, add_special_tokens=plain).ids

    def _answer(self, prompt: list[int], limit: int) -> Expected:
        said = self.engine(prompt, limit)
        return {
            "prompt_ids": prompt,
            "ids": said.ids,
            "end": said.end,
            "answer": self._text(prompt, said.ids),
            "finish_reason": "length" if said.end is None else "stop",
            "margin": round(said.margin, 6),
        }

    def _text(self, prompt: list[int], ids: list[int]) -> str | None:
        """What is behind the prompt in the text of both; none where that cannot be told, or is not whole."""
        before, both = (self.tokenizer.decode(all_ids, skip_special_tokens=True) for all_ids in (prompt, prompt + ids))
        answer = both[len(before) :]
        broken = before.endswith(BROKEN) or BROKEN in answer
        return answer if both.startswith(before) and not broken else None
