"""The kinds of tokenizers that the families have, learned from a small made-up text."""

import json
import math
import random
from collections.abc import Sequence
from functools import cache

from random_model import made_up_text
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

MERGES = 160
"""How many tokens of more than one character each tokenizer learns."""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = "▁"
MARK = 0xF0000
"""Where characters for private use begin."""
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
CHINESE = "今天天气很好 我们去水边看书 你好世界 中国人民很多 小狗在大树下吃东西 他说明天再来 这是一个问题 谢谢你的回答"

Tokens = Sequence[AddedToken | str]
Learned = tuple[list[str], list[tuple[str, str]]]
"""Tokens in the order of their ids, and the merges that make them."""


def special(content: str, *, rstrip: bool = False) -> AddedToken:
    """A special token, which decoding leaves out."""
    return AddedToken(content, special=True, normalized=False, rstrip=rstrip)


def plain(content: str) -> AddedToken:
    """An added token that is a text like any other: it is looked for first, and decoding keeps it."""
    return AddedToken(content, special=False, normalized=False)


def corpus() -> list[str]:
    """What all of them learn from."""
    accents = ["Café naïve déjà vu élève à côté", "über schöne Straße größer"]
    numbers = [f"What is {a} + {a + 8}?" for a in range(0, 60, 7)]
    code = ["if (x) {\n    return y;\n}", "def main():\n    return 0\n"]
    return made_up_text(random.Random(1), lines=250) + 4 * (accents + numbers + code)


def byte_level(
    *,
    first: Tokens = (),
    last: Tokens = (),
    start: str | None = None,
    words: str | None = None,
    before: pre_tokenizers.PreTokenizer | None = None,
    normalizer: normalizers.Normalizer | None = None,
    ignore_merges: bool = False,
) -> Tokenizer:
    """BPE over bytes, as GPT-2's. `words` is a regular expression in place of GPT-2's own; `before` splits first."""
    tokens, merges = _learned("bytes")
    model = models.BPE(vocab=_ids(first, tokens), merges=merges, ignore_merges=ignore_merges)
    made = Tokenizer(model)
    steps = [before] if before else []
    if words:
        steps.append(pre_tokenizers.Split(Regex(words), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps) if steps[1:] else steps[0]
    if normalizer:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    return _finished(made, first, last, start)


def byte_fallback(
    *, first: Tokens, last: Tokens = (), start: str | None, style: str, spaces: Sequence[str] = ()
) -> Tokenizer:
    """BPE over characters, and bytes for those that it does not know.

    `style` says where spaces are made `▁`: "llama" in a normalizer that also puts one in front, "gemma" in a normalizer
    that does not, "metaspace" in a pre-tokenizer that puts one in front of the text's first word only.
    """
    tokens, merges = _learned("words")
    vocabulary = _ids(first, [*BYTES, *spaces, *tokens])
    made = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True, ignore_merges=False
        )
    )
    to_space, bytes_to_text = decoders.Replace(SPACE, " "), [decoders.ByteFallback(), decoders.Fuse()]
    strip = decoders.Strip(" ", 1, 0)
    if style == "llama":
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
        made.decoder = decoders.Sequence([to_space, *bytes_to_text, strip])
    elif style == "gemma":
        made.normalizer = normalizers.Replace(" ", SPACE)
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        made.decoder = decoders.Sequence([to_space, *bytes_to_text])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Sequence([to_space, *bytes_to_text, strip])
    return _finished(made, first, last, start)


def unigram(*, first: Tokens, start: str) -> Tokenizer:
    """Pieces with scores, as SentencePiece's: a character that no piece has becomes `<unk>`."""
    pieces = [(str(_content(token)), 0.0) for token in first]
    pieces += [(token, -math.log(place + 2)) for place, token in enumerate(_learned("words")[0])]
    made = Tokenizer(models.Unigram(pieces, unk_id=_contents(first).index("<unk>"), byte_fallback=False))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return _finished(made, first, (), start)


def word_piece(*, first: Tokens, start: str) -> Tokenizer:
    """Whole words and `##` pieces of them, as BERT's; each Chinese character is a word."""
    tokens, _ = _learned("pieces")
    made = Tokenizer(models.WordPiece(vocab=_ids(first, tokens), unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return _finished(made, first, (), start)


def end_of_word(*, first: Tokens) -> Tokenizer:
    """BPE whose words end in `</w>`, as the first GPT's; a character that it does not know becomes `<unk>`."""
    tokens, merges = _learned("suffix")
    model = models.BPE(vocab=_ids(first, tokens), merges=merges, unk_token="<unk>", end_of_word_suffix="</w>")
    made = Tokenizer(model)
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    return _finished(made, first, (), None)


@cache
def _learned(kind: str) -> Learned:
    """Learns the tokens of "bytes", "words" (with `▁` before), "suffix" (`</w>` behind) or "pieces" (`##` within)."""
    made, texts = Tokenizer(models.BPE()), corpus()
    if kind == "bytes":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=alphabet, show_progress=False)
    elif kind == "words":
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=80 + MERGES, show_progress=False)
    else:
        texts = [_marked(word, kind) for word in _bert_words([*texts, CHINESE] if kind == "pieces" else texts)]
        trainer = trainers.BpeTrainer(vocab_size=180 + MERGES, show_progress=False)
    made.train_from_iterator(texts, trainer)
    model = json.loads(made.to_str())["model"]
    tokens = [_unmarked(token, kind) for token in sorted(model["vocab"], key=model["vocab"].get)]
    return tokens, [(_unmarked(left, kind), _unmarked(right, kind)) for left, right in model["merges"]]


def _bert_words(texts: list[str]) -> list[str]:
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    return [word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]


def _marked(word: str, kind: str) -> str:
    """Characters at a word's end, or within it, made others: trainers with `##` or `</w>` number tokens by chance."""
    first, marked = (word[:-1], word[-1]) if kind == "suffix" else (word[0], word[1:])
    return first + "".join(chr(MARK + ord(character)) for character in marked)


def _unmarked(token: str, kind: str) -> str:
    text = "".join(chr(ord(character) - MARK) if ord(character) >= MARK else character for character in token)
    if kind == "suffix" and ord(token[-1]) >= MARK:
        return text + "</w>"
    return f"##{text}" if kind == "pieces" and ord(token[0]) >= MARK else text


def _finished(made: Tokenizer, first: Tokens, last: Tokens, start: str | None) -> Tokenizer:
    """Makes its special tokens known; those of `last` get the ids behind all others. `start` goes before prompts."""
    made.add_tokens([special(token) if isinstance(token, str) else token for token in (*first, *last)])
    if start:
        made.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start}:1 $B:1", special_tokens=[(start, made.token_to_id(start))]
        )
    return made


def _ids(first: Tokens, tokens: list[str]) -> dict[str, int]:
    return {token: place for place, token in enumerate([*_contents(first), *tokens])}


def _contents(tokens: Tokens) -> list[str]:
    return [_content(token) for token in tokens]


def _content(token: AddedToken | str) -> str:
    return token if isinstance(token, str) else token.content
