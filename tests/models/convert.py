"""Writes Hugging Face models of every family with random weights, converts them, and says what transformers answers.

convert.py FOLDER [NAME ...] with the Python of tests/wheel/requirements.txt. Each model that converts, and whose logits
are then those of transformers, gets a folder as `tests/model/families.py` writes them: the converted model, and
`expected.json` with transformers' own greedy answers in float32 and its own rendering of chats. Answers to prompts
longer than a window are only there where the engine gives them too. A table of all goes to the standard output.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ctranslate2
import numpy as np
import torch
import transformers
from configs import CONFIGS, FORMS
from families import LISTS, Unfit, answered, clear, judge
from family import newer, older
from family.expected import Asked, Expected, Renderer, Said, python_engine
from family.family import Family
from family.weights import SPREAD, row_scales
from pillion.conversion import convert

GAIN, TIED_GAIN = 3.0, 8.0
"""How much larger weights are than a training would begin with: the likeliest token stands clear of the second. A token
would follow itself where the output is tied, were the layers not to outweigh it."""
AFTER, SHARP = 300.0, 3.0
"""What Gemma's norms behind a layer multiply by, which must outweigh the scaled embeddings; and those of queries and
keys, so that attention picks."""
SEEDS = 8
CLOSE = 0.02
"""How far logits may be apart; they spread to about 16."""


class Model:
    """A transformers model with random weights, and its tokenizer, as in a folder of the hub's."""

    def __init__(self, family: Family, folder: Path, seed: int) -> None:
        self.plain = family.tokenizer()
        self.vocabulary = family.vocabulary(self.plain)
        self.ends = [self.plain.token_to_id(token) for token in family.ends]
        bos = self.plain.token_to_id(family.bos) if family.bos else None
        common = {"vocab_size": len(self.vocabulary), "bos_token_id": bos, "eos_token_id": self.ends[0]}
        torch.manual_seed(seed)
        config = CONFIGS[family.name](**common, pad_token_id=None)
        self.model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
        self._draw(family)
        self.model.generation_config.update(eos_token_id=self.ends, bos_token_id=bos, pad_token_id=self.ends[0])
        self.model.save_pretrained(folder)
        family.write_others(folder, self.plain)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def _draw(self, family: Family) -> None:
        known = range(min(len(self.vocabulary), self.plain.get_vocab_size()))
        fragments = {token for token in known if "\ufffd" in self.plain.decode([token])} - {*self.ends}
        unused = set(range(len(known), len(self.vocabulary)))
        scales = torch.tensor(row_scales(len(self.vocabulary), {*self.ends}, fragments, unused))
        gain = TIED_GAIN if self.model.config.tie_word_embeddings else GAIN
        for name, weight in self.model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=(1 if "project_in" in name else gain) / math.sqrt(weight.shape[1]))
            elif "q_norm" in name or "k_norm" in name:
                weight.fill_(SHARP)
            elif family.name in ("gemma2", "gemma2-capped", "gemma3", "gemma4") and ".post_" in name:
                weight.fill_(AFTER)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
        for rows in (self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight):
            rows.normal_(std=SPREAD / math.sqrt(rows.shape[1]))
            rows.mul_(scales[:, None])

    def answer(self, prompt: list[int], limit: int) -> Said:
        """Greedily, as `generate` does it."""
        ids = torch.tensor([prompt])
        said = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        leads = (torch.topk(step[0], 2).values for step in said.logits)
        margin = min(float(first - second) for first, second in leads)
        new = said.sequences[0, len(prompt) :].tolist()
        return Said(new[:-1], new[-1], margin) if new[-1] in self.ends else Said(new, None, margin)

    def renderer(self) -> Renderer | None:
        """Chats as transformers renders them; that it makes the same tokens of them is looked at too."""
        if not self.tokenizer.chat_template:
            return None

        def render(messages: list[dict[str, str]], more: dict[str, Any]) -> str:
            given = {"conversation": messages, "add_generation_prompt": True, **more}
            text = self.tokenizer.apply_chat_template(tokenize=False, **given)
            self.plain.encode_special_tokens = False
            ids = self.tokenizer.apply_chat_template(tokenize=True, return_dict=False, **given)
            if ids != self.plain.encode(text, add_special_tokens=False).ids:
                raise ValueError("transformers makes other tokens of a chat than tokenizers does")
            return text

        return render

    @torch.no_grad()
    def logits(self, ids: list[int]) -> np.ndarray:
        """Of every position."""
        return self.model(torch.tensor([ids])).logits[0].numpy()


def fitting(family: Family, folder: Path) -> tuple[Model, Expected]:
    """A model whose answers show enough, or the last that was tried, and what is expected of it."""
    for seed in range(1, SEEDS + 1):
        model = Model(family, folder, seed)
        engine = clear(model.answer) if seed < SEEDS else model.answer
        with suppress(Unfit):
            expected = answered(family, Asked(model.plain, len(model.vocabulary), engine), model.renderer())
            if seed < SEEDS:
                judge(list(all_answers(expected)), model.ends)
            break
    return model, {"family": family.name, "end_tokens": model.ends, **expected}


def all_answers(expected: Expected) -> Iterable[Expected]:
    for name in LISTS:
        yield from (answer for answer in expected.get(name, ()) if "ids" in answer)


def difference(model: Model, converted: Path, expected: Expected, window: int) -> float:
    """The largest between the logits of both, over prompts and answers that a window holds."""
    generator = ctranslate2.Generator(str(converted), compute_type="float32", intra_threads=1)
    largest = 0.0
    for answer in all_answers(expected):
        ids = answer["prompt_ids"] + answer["ids"]
        if not window or len(ids) <= window:
            [theirs] = np.asarray(generator.forward_batch([[model.vocabulary[token] for token in ids]]))
            largest = max(largest, float(np.abs(theirs[: len(ids)] - model.logits(ids)).max()))
    return largest


def same_answers(model: Model, converted: Path, expected: Expected) -> str:
    """How many answers CTranslate2's Python package gives too. Those to long prompts are left out where it does not."""
    engine = python_engine(converted, model.vocabulary, model.ends)
    told = []
    for name in LISTS:
        answers = [answer for answer in expected.get(name, ()) if "ids" in answer]
        same = [each for each in answers if engine(each["prompt_ids"], each["max_new_tokens"]).ids == each["ids"]]
        if answers:
            told.append(f"{len(same)} of {len(answers)} {name}")
        if name == "windowed" and answers:
            expected[name] = same
    return ", ".join(told)


def tried(family: Family, output: Path) -> str:
    """Writes a family's folder if it can; says what came of it."""
    with TemporaryDirectory() as name:
        source = Path(name) / "source"
        try:
            model, expected = fitting(family, source)
        except Exception as error:  # noqa: BLE001
            return f"| {family.name} | transformers: {said(error)} | | |"
        converted = output / family.name
        try:
            convert(str(source), converted, "float32")
        except Exception as error:  # noqa: BLE001
            return f"| {family.name} | no: {said(error).replace(name, '')} | | |"
        apart = difference(model, converted, expected, family.architecture.window)
        same = same_answers(model, converted, expected)
        if apart < CLOSE:
            (converted / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
        else:
            shutil.rmtree(converted)
        return f"| {family.name} | yes | {'yes' if apart < CLOSE else 'no'}, {apart:.5f} apart | {same} |"


def said(error: Exception) -> str:
    """What it says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def known_families() -> dict[str, Family]:
    """Those of `tests/model`, and their other forms."""
    made = {family.name: family for family in (*older.families(), *newer.families())}
    return made | {name: replace(made[family], name=name) for name, family in FORMS.items()}


def main() -> None:
    output, only = Path(sys.argv[1]), sys.argv[2:]
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    packages = ", ".join(f"{name} {version(name)}" for name in ("transformers", "ctranslate2", "torch", "tokenizers"))
    print(
        f"With {packages}:\n\n| family | converts | logits as transformers' | answers too |\n| --- | --- | --- | --- |"
    )
    for name, family in known_families().items():
        if not only or name in only:
            print(tried(family, output), flush=True)


if __name__ == "__main__":
    main()
