"""Text in, text out through Python's CTranslate2: the code that every Python server of the bench shares."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import ctranslate2
from tokenizers import Tokenizer


@dataclass(frozen=True)
class Answer:
    text: str
    prompt_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, object]:
        """What of Pillion's own answer the loads look at."""
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {"text": self.text, "usage": usage}


class Model:
    """Blocks while it answers."""

    def __init__(self, directory: Path, threads: int, device: str = "cpu", compute_type: str = "default") -> None:
        self._generator = ctranslate2.Generator(
            str(directory), device=device, compute_type=compute_type, inter_threads=1, intra_threads=threads
        )
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def answers(self, texts: list[str], limits: list[int]) -> list[Answer]:
        """One batch; each answer ends at its own limit of new tokens."""
        prompts = self.tokenised(texts)
        generated = self.generated(prompts, max(limits))
        ids = [new[:limit] for new, limit in zip(generated, limits, strict=True)]
        decoded = self._tokenizer.decode_batch(ids)
        return [Answer(text, len(prompt), len(new)) for text, prompt, new in zip(decoded, prompts, ids, strict=True)]

    def tokenised(self, texts: list[str]) -> list[list[str]]:
        return [prompt.tokens for prompt in self._tokenizer.encode_batch(texts)]

    def steps(self, prompt: list[str], limit: int) -> list[float]:
        """When each token of one answer came, in seconds since the call."""
        times: list[float] = []
        called = perf_counter()

        def heard(_result: object) -> bool:
            times.append(perf_counter() - called)
            return False

        self._generator.generate_batch(
            [prompt], beam_size=1, sampling_topk=1, max_length=limit, include_prompt_in_result=False, callback=heard
        )
        return times

    def generated(self, prompts: list[list[str]], limit: int) -> list[list[int]]:
        """The engine's work alone: the new tokens' ids, the best token at every step."""
        results = self._generator.generate_batch(
            prompts, beam_size=1, sampling_topk=1, max_length=limit, include_prompt_in_result=False
        )
        return [result.sequences_ids[0] for result in results]
