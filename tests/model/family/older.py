"""Families with biases, LayerNorm or ALiBi: GPT-2, what came of it, and what came before Llama."""

from ctranslate2.specs.common_spec import Activation
from tokenizers import normalizers, pre_tokenizers

from family.architectures import EVERYWHERE, Architecture, falcon, gpt, gptj, neox
from family.family import Family
from family.vocabularies import byte_level, end_of_word, plain, unigram, word_piece

END = "<|endoftext|>"
OPT = ["<s>", "<pad>", "</s>", "<unk>"]
SPACES = [plain(" " * number) for number in (8, 4, 2)]
STARCHAT = [END, "<extra_id_0>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
FALCON = [">>TITLE<<", ">>ABSTRACT<<", ">>INTRODUCTION<<", END]
BLOOM = Architecture(
    {
        "activation": Activation.GELUTanh,
        "layernorm_embedding": True,
        "alibi": True,
        "alibi_use_positive_positions": True,
    }
)
MPT = Architecture({"activation": Activation.GELU, "alibi": True}, biases=frozenset())
XGLM = Architecture({"activation": Activation.GELU}, scaled=True)
"""Its positions are sines, which the engine computes."""
OPT_350M = gpt(Activation.RELU, pre_norm=False, project_in_out=True)


def _opt() -> Family:
    return Family(
        "opt",
        gpt(Activation.RELU),
        lambda: byte_level(first=OPT, start="</s>"),
        bos="</s>",
        eos="</s>",
        unk="</s>",
        pad="<pad>",
        padding=4,
        padding_name="madeupword{:04d}",
        token_objects=True,
    )


def families() -> list[Family]:
    """All of them."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    punctuation = pre_tokenizers.Punctuation("contiguous")
    split_numbers = pre_tokenizers.Sequence([punctuation, digits])
    all_end = {"bos": END, "eos": END, "unk": END}
    return [
        _opt(),
        Family(
            "opt-350m",
            OPT_350M,
            lambda: byte_level(first=OPT, start="</s>"),
            bos="</s>",
            eos="</s>",
            unk="</s>",
            pad="<pad>",
            padding=4,
            padding_name="madeupword{:04d}",
            template="ended",
        ),
        Family("gpt2", gpt(), lambda: byte_level(last=[END]), **all_end, template="ended"),
        Family(
            "gpt2-chinese",
            gpt(),
            lambda: word_piece(first=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], start="[CLS]"),
            bos="[CLS]",
            eos="[SEP]",
            unk="[UNK]",
            pad="[PAD]",
        ),
        Family(
            "openai-gpt",
            gpt(Activation.GELU),
            lambda: end_of_word(first=["<unk>", "<s>", "</s>"]),
            bos="<s>",
            eos="</s>",
            unk="<unk>",
        ),
        Family(
            "gpt-bigcode",
            gpt(multi_query_attention=True),
            lambda: byte_level(first=STARCHAT, before=digits),
            **all_end,
            more_ends=("<|end|>",),
            template="starchat",
        ),
        Family(
            "gptj",
            gptj(8, frozenset({"ffn", "projection"})),
            lambda: byte_level(last=[END, *(plain(f"<|extratoken_{number}|>") for number in range(1, 7))]),
            **all_end,
            template="alpaca",
        ),
        Family(
            "codegen",
            gptj(8, frozenset({"ffn", "projection"})),
            lambda: byte_level(last=[END, *SPACES]),
            **all_end,
            padding=9,
            vocabulary_text=True,
        ),
        Family(
            "gpt-neox",
            neox(),
            lambda: byte_level(
                first=[END, "<|padding|>"],
                last=[*SPACES, "<|prompter|>", "<|assistant|>", "<|system|>"],
                normalizer=normalizers.NFC(),
            ),
            **all_end,
            pad="<|padding|>",
            padding=5,
            template="oasst",
        ),
        Family(
            "bloom",
            BLOOM,
            lambda: byte_level(first=["<unk>", "<s>", "</s>", "<pad>"], words=r" ?[^(\s|[.,!?…。，、।۔،])]+"),
            bos="<s>",
            eos="</s>",
            unk="<unk>",
            pad="<pad>",
            padding=8,
            template="ended",
        ),
        Family(
            "mpt",
            MPT,
            lambda: byte_level(first=[END, "<|padding|>"], last=["<|im_start|>", "<|im_end|>"]),
            **all_end,
            more_ends=("<|im_end|>",),
            padding=3,
            template="chatml",
        ),
        Family(
            "falcon-7b",
            falcon(heads_kv=1),
            lambda: byte_level(first=FALCON, before=split_numbers),
            eos=END,
            unk_in_config=END,
            padding=7,
            template="falcon",
        ),
        Family(
            "falcon-40b",
            falcon(heads_kv=2),
            lambda: byte_level(first=FALCON, before=split_numbers),
            eos=END,
            unk_in_config=END,
            template="falcon",
        ),
        Family("falcon-rw", falcon(heads_kv=None, rotary=False), lambda: byte_level(last=[END]), **all_end),
        Family(
            "phi",
            gptj(8, EVERYWHERE | {"projection"}),
            lambda: byte_level(last=[END, *SPACES]),
            **all_end,
            padding=11,
            template="instruct",
        ),
        Family(
            "xglm",
            XGLM,
            lambda: unigram(first=["<s>", "<pad>", "</s>", "<unk>"], start="</s>"),
            bos="<s>",
            eos="</s>",
            unk="<unk>",
            pad="<pad>",
        ),
    ]
