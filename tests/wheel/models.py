"""Writes Hugging Face directories with random weights, and what transformers answers with them: models.py FOLDER.

Run with the Python of `pillion[convert]`. Weights are random but from a fixed seed; they are larger than a training would begin
with, so that the likeliest token stands clear of the second.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GemmaConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
PROMPTS = [
    "What is 17 + 25?",
    "Hello World, what is your name dog?",
    "a",
    "Once upon a time there was a small model that nobody had trained.",
]
NEW_TOKENS = 12
TEMPLATE = "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}[assistant] "


def tokenizer() -> Tokenizer:
    """A byte-level tokenizer that adds <s>."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        PROMPTS * 8, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def write(folder: Path, config: transformers.PretrainedConfig, made: Tokenizer) -> None:
    """A directory, and in `answers.json` what transformers says to the prompts, greedily and in float32."""
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.1 if "embed" in name else 3.0 / weight.shape[1] ** 0.5)
    model.generation_config.update(**ENDS)
    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    answers = {}
    for prompt in PROMPTS:
        ids = torch.tensor([made.encode(prompt).ids])
        said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        answers[prompt] = fast.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
    (folder / "answers.json").write_text(json.dumps(answers))


def main() -> None:
    """All of them."""
    folder = Path(sys.argv[1])
    made = tokenizer()
    size = {
        "vocab_size": made.get_vocab_size(),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **ENDS,
    }
    grouped = {**size, "intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": 256}
    opt = {**size, "ffn_dim": 128, "max_position_embeddings": 256, "word_embed_proj_dim": 64}
    write(folder / "opt", OPTConfig(**opt), made)
    write(folder / "llama", LlamaConfig(**grouped), made)
    write(folder / "qwen2", Qwen2Config(**grouped), made)
    write(folder / "gemma", GemmaConfig(**grouped, head_dim=16), made)

    # As older repositories are: the two files of a byte-level tokenizer, and no tokenizer.json.
    write(folder / "slow", OPTConfig(**opt), made)
    for left in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        (folder / "slow" / left).unlink(missing_ok=True)
    made.model.save(str(folder / "slow"))
    kind = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "slow" / "tokenizer_config.json").write_text(json.dumps(kind))


if __name__ == "__main__":
    main()
