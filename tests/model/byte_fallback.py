"""Byte-fallback BPE tokenizers in the manner of Llama 2's: "▁" is a space, and what is no token becomes its bytes."""

import json
import string
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPACE = "▁"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + SPACE
"""Those that are tokens, and that merges are made of."""


def train_tokenizer(texts: Iterable[str], vocabulary: int, special: Sequence[str]) -> Tokenizer:
    """Learns a vocabulary of exactly this size, in which `special` (unknown, start and end first) have the first ids.

    Digits and most punctuation stay single, and no token spans two words. A text is learnt from as it stands, so a word
    at its beginning is learnt without the space before it.
    """
    learner = Tokenizer(models.BPE(unk_token=special[0]))
    # Llama's own form has no pre-tokenizer: these bounds are in the merges that are learnt within them.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never"),
            pre_tokenizers.Split(Regex(r"\d|[^\w\s▁+=]"), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        show_progress=False,
        special_tokens=[*special, *BYTES],
        initial_alphabet=list(CHARACTERS),
        limit_alphabet=len(CHARACTERS),
    )
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]
    if len(learnt["vocab"]) != vocabulary:
        raise ValueError(f"the texts gave {len(learnt['vocab'])} tokens, not {vocabulary}")
    return _assembled(learnt["vocab"], [tuple(merge) for merge in learnt["merges"]], special)


def without_first_space(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer for a text that goes on where another ended: no space is put before it, and no start token."""
    continuing = Tokenizer.from_str(tokenizer.to_str())
    continuing.normalizer = normalizers.Replace(" ", SPACE)
    continuing.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return continuing


def _assembled(vocabulary: dict[str, int], merges: list[tuple[str, str]], special: Sequence[str]) -> Tokenizer:
    unknown, start = special[:2]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start}:1 $B:1", special_tokens=[(start, vocabulary[start])]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer
