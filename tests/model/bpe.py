"""Byte-level BPE tokenizers in the manner of OPT's, filled to an exact vocabulary size."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
SPECIAL_TOKENS = [BOS, PAD, EOS, UNK]
"""Their ids are their places here. A prompt starts with `EOS`, as OPT's do."""


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, *, trained: int | None = None, start_token: bool = True
) -> Tokenizer:
    """Learns up to `trained` tokens from `texts` and fills the `vocabulary` with tokens that no text encodes to.

    Every digit is a token, and any UTF-8 text encodes. `start_token` puts `EOS` before each prompt; without it a text
    can be a prompt of one token.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, trained or vocabulary),
        show_progress=False,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    if start_token:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{EOS} $A", pair=f"{EOS} $A {EOS}:1 $B:1", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
        )
    return _filled(tokenizer, vocabulary)


def vocabulary_of(tokenizer: Tokenizer) -> list[str]:
    """The token of every id, in order."""
    return [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]


def _filled(tokenizer: Tokenizer, vocabulary: int) -> Tokenizer:
    """Adds entries without merges: they have an id and decode to their own name, but are never matched in a text."""
    layout = json.loads(tokenizer.to_str())
    entries = layout["model"]["vocab"]
    if len(entries) > vocabulary:
        raise ValueError(f"a vocabulary of {vocabulary} has no room for all bytes: {len(entries)} is the least")
    for number in range(vocabulary - len(entries)):
        entries[f"madeupword{number:04d}"] = len(entries)
    return Tokenizer.from_str(json.dumps(layout))
