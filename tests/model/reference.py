"""The reference that answers are compared with: CTranslate2's own Python package, one request at a time.

Reads JSON lines {"id", "text", "max_new_tokens", "min_new_tokens"} and writes, for each, {"id", "prompt_ids", "ids",
"text", "finish_reason"}. The ids leave out the end token; the text is what they add to their prompt's; the reason is "stop"
or "length". The model's end tokens are those of config.json and generation_config.json.

With --compare it judges two answers to one text instead. Reads {"text", "ids_a", "ids_b"} and writes the first
position where they part and what the model thinks of both tokens there: {"position", "logprob_a", "logprob_b",
"top": [[id, logprob], ...]}. An answer that ends where the other goes on counts as having the likeliest end token there; for
equal answers the position is null.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from tokenizers import Tokenizer

TOP = 3


class Reference:
    """A model directory and its tokenizer, used as the worker uses them."""

    def __init__(self, directory: Path, device: str, compute_type: str, threads: int) -> None:
        self._generator = ctranslate2.Generator(
            str(directory), device=device, compute_type=compute_type, inter_threads=1, intra_threads=threads
        )
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True
        self._ends = end_tokens(directory)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        prompt = self._tokenizer.encode(request["text"])
        limit = request["max_new_tokens"]
        [result] = self._generator.generate_batch(
            [prompt.tokens],
            beam_size=1,
            sampling_topk=1,
            max_length=limit,
            min_length=request.get("min_new_tokens", 0),
            include_prompt_in_result=False,
            end_token=self._ends,
        )
        ids = result.sequences_ids[0]
        return {
            "id": request["id"],
            "prompt_ids": prompt.ids,
            "ids": ids,
            "text": self._text(prompt.ids + ids).removeprefix(self._text(prompt.ids)),
            "finish_reason": "stop" if len(ids) < limit else "length",
        }

    def compare(self, request: dict[str, Any]) -> dict[str, Any]:
        a, b = request["ids_a"], request["ids_b"]
        pairs = enumerate(zip_longest(a, b))
        position, (token_a, token_b) = next(
            ((i, pair) for i, pair in pairs if pair[0] != pair[1]), (None, (None, None))
        )
        if position is None:
            return {"position": None}
        scores = self._next_log_probs(self._tokenizer.encode(request["text"]).ids + a[:position])
        end = max(self._ends, key=lambda token: scores[token])
        token_a, token_b = (end if token is None else token for token in (token_a, token_b))
        best = np.argsort(-scores)[:TOP]
        return {
            "position": position,
            "logprob_a": float(scores[token_a]),
            "logprob_b": float(scores[token_b]),
            "top": [[int(token), float(scores[token])] for token in best],
        }

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _next_log_probs(self, ids: list[int]) -> np.ndarray:
        scores = self._generator.forward_batch([ids], return_log_probs=True)
        on_cpu = scores.to(ctranslate2.DataType.float32).to_device(ctranslate2.Device.cpu)
        return np.asarray(on_cpu)[0, -1]


def end_tokens(directory: Path) -> list[int]:
    """The ids of a model's end tokens."""
    eos = json.loads((directory / "config.json").read_text())["eos_token"]
    ends = {json.loads((directory / "vocabulary.json").read_text()).index(eos)}
    generation = directory / "generation_config.json"
    if generation.exists():
        listed = json.loads(generation.read_text()).get("eos_token_id") or []
        ends.update(listed if isinstance(listed, list) else [listed])
    return sorted(ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model directory with a tokenizer.json")
    parser.add_argument("--compare", action="store_true", help="judge pairs of answers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compute-type", default="default")
    parser.add_argument("--threads", type=int, default=1, help="threads of one engine call")
    arguments = parser.parse_args()

    reference = Reference(arguments.model, arguments.device, arguments.compute_type, arguments.threads)
    reply: Callable[[dict[str, Any]], dict[str, Any]] = reference.compare if arguments.compare else reference.answer
    for line in sys.stdin:
        print(json.dumps(reply(json.loads(line)), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
