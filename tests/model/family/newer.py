"""Families with root-mean-square norms, gated feed-forward and rotary positions: Llama and its like."""

from ctranslate2.specs.attention_spec import RotaryScalingType
from tokenizers import pre_tokenizers

from family.architectures import (
    HEAD,
    WINDOW,
    embeddings_of_gemma,
    gemma,
    layers_of_gemma3,
    layers_of_gemma4,
    llama,
    rope_of_llama3,
    rope_of_phi3,
)
from family.family import Family
from family.vocabularies import LLAMA3_WORDS, QWEN_WORDS, byte_fallback, byte_level, plain, special

PIECES = ["<unk>", "<s>", "</s>"]
PIECE_TOKENS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
END, TURN_END = "<|endoftext|>", "<|im_end|>"
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN = [END, "<|im_start|>", TURN_END]
THINKING = [plain("<think>"), plain("</think>")]
PHI3 = [special(token, rstrip=True) for token in (END, "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")]
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
GEMMA4 = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>"]
GEMMA_TOKENS = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}
GEMMA_SPACES = ["▁" * number for number in range(2, 6)]
BOTH_NORMS = {"pre_post_layer_norm": True, "num_heads_kv": 2, "head_dim": HEAD}
WINDOWED = {"rotary_dim": HEAD, "sliding_window": WINDOW, "qk_norm": True, **BOTH_NORMS}


def families() -> list[Family]:
    """All of them."""
    return [*_llamas(), *_qwens(), *_gemmas()]


def _llamas() -> list[Family]:
    digits = pre_tokenizers.Digits(individual_digits=True)
    llama3_rope = {"rotary_base": 500_000, "rotary_scaling_type": RotaryScalingType.Llama3, "rotary_scaling_factor": 8}
    phi3_rope = {"original_max_position_embeddings": 128, "max_position_embeddings": 512}
    return [
        Family(
            "llama2",
            llama(),
            lambda: byte_fallback(first=PIECES, last=["<pad>"], start="<s>", style="llama"),
            **PIECE_TOKENS,
            pad="<pad>",
            padding=-1,
            token_objects=True,
            template="llama2",
        ),
        Family(
            "llama3",
            llama(num_heads_kv=2, change=rope_of_llama3, **llama3_rope),
            lambda: byte_level(last=LLAMA3, start="<|begin_of_text|>", words=LLAMA3_WORDS, ignore_merges=True),
            bos="<|begin_of_text|>",
            eos="<|eot_id|>",
            unk_in_config="",
            more_ends=("<|end_of_text|>",),
            template="llama3",
        ),
        Family(
            "smollm",
            llama(tied=True, num_heads_kv=2),
            lambda: byte_level(first=QWEN, before=digits),
            bos="<|im_start|>",
            eos=TURN_END,
            unk=END,
            pad=TURN_END,
            template="smollm",
        ),
        Family(
            "mistral",
            llama(num_heads_kv=2, sliding_window=WINDOW, head_dim=HEAD),
            lambda: byte_fallback(first=PIECES, start="<s>", style="llama"),
            **PIECE_TOKENS,
            template="mistral",
        ),
        Family(
            "mistral-v3",
            llama(num_heads_kv=1, head_dim=HEAD),
            lambda: byte_fallback(first=[*PIECES, "[INST]", "[/INST]"], start="<s>", style="metaspace"),
            **PIECE_TOKENS,
            padding=6,
            template="mistral-v3",
        ),
        Family(
            "phi3",
            llama(
                epsilon=None,
                change=rope_of_phi3,
                rotary_scaling_type=RotaryScalingType.Su,
                **phi3_rope,
            ),
            lambda: byte_fallback(first=PIECES, last=PHI3, start="<s>", style="llama"),
            bos="<s>",
            eos=END,
            unk="<unk>",
            pad=END,
            more_ends=("<|end|>", "<|user|>"),
            padding=10,
            template="phi3",
        ),
    ]


def _qwens() -> list[Family]:
    return [
        Family(
            "qwen2",
            llama(biases=frozenset({"qkv"}), epsilon=1e-6, num_heads_kv=2, rotary_base=1_000_000),
            lambda: byte_level(last=QWEN, words=QWEN_WORDS),
            eos=TURN_END,
            pad=END,
            unk_in_config="",
            more_ends=(END,),
            padding=13,
            template="qwen2",
        ),
        Family(
            "qwen3",
            llama(
                tied=True,
                epsilon=1e-6,
                num_heads_kv=2,
                head_dim=2 * HEAD,
                rotary_dim=2 * HEAD,
                rotary_base=1_000_000,
                qk_norm=True,
            ),
            lambda: byte_level(last=[*QWEN, *THINKING], words=QWEN_WORDS),
            eos=TURN_END,
            pad=END,
            unk_in_config="",
            more_ends=(END,),
            padding=5,
            template="qwen3",
            template_in_file=True,
            chat_options=({"enable_thinking": False}, {"enable_thinking": True}),
        ),
    ]


def _gemmas() -> list[Family]:
    beyond = [special("<image_soft_token>"), plain("[multimodal]")]
    turn = ("<end_of_turn>",)
    return [
        Family(
            "gemma",
            gemma(num_heads_kv=1, head_dim=2 * HEAD, change=embeddings_of_gemma),
            lambda: byte_fallback(first=GEMMA, start="<bos>", style="gemma", spaces=GEMMA_SPACES),
            **GEMMA_TOKENS,
            more_ends=turn,
            template="gemma",
        ),
        Family(
            "gemma2",
            gemma(change=embeddings_of_gemma, **BOTH_NORMS),
            lambda: byte_fallback(first=GEMMA, start="<bos>", style="gemma", spaces=GEMMA_SPACES),
            **GEMMA_TOKENS,
            more_ends=turn,
            padding=4,
            template="gemma",
        ),
        Family(
            "gemma3",
            gemma(epsilon=None, change=layers_of_gemma3, **WINDOWED),
            lambda: byte_fallback(first=GEMMA, last=beyond, start="<bos>", style="gemma", spaces=GEMMA_SPACES),
            **GEMMA_TOKENS,
            more_ends=turn,
            eos_in_config="<end_of_turn>",
            padding=-len(beyond),
            refused=("A [multimodal] text", "[multimodal]"),
            template="gemma3",
            template_in_file=True,
        ),
        Family(
            "gemma4",
            gemma(residual_norm=False, epsilon=None, change=layers_of_gemma4, v_norm=True, **WINDOWED),
            lambda: byte_fallback(first=GEMMA4, start="<bos>", style="gemma", spaces=GEMMA_SPACES),
            **GEMMA_TOKENS,
            more_ends=("<turn|>",),
            eos_in_config="<turn|>",
            template="gemma4",
            template_in_file=True,
            chat_options=({"enable_thinking": True},),
        ),
    ]
