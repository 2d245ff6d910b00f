"""The families of `tests/model/family` as transformers' configurations, of the same small sizes."""

from collections.abc import Callable
from typing import Any

from family.architectures import EMBEDDED, FFN, HEAD, HEADS, LAYERS, POSITIONS, WIDTH, WINDOW
from transformers import (
    BloomConfig,
    CodeGenConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OpenAIGPTConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    XGLMConfig,
)

OLDER = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS}
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
}
GATED = {**SIZES, "intermediate_size": FFN, "num_key_value_heads": HEADS, "head_dim": HEAD}
GROUPED = {**GATED, "num_key_value_heads": 2}
OPT = {**SIZES, "ffn_dim": FFN, "word_embed_proj_dim": WIDTH}
FALCON = {key: SIZES[key] for key in SIZES if key != "max_position_embeddings"} | {"ffn_hidden_size": FFN}
XGLM = {"d_model": WIDTH, "num_layers": LAYERS, "attention_heads": HEADS, "ffn_dim": FFN}
GEMMA2 = {**GROUPED, "query_pre_attn_scalar": HEAD, "attn_logit_softcapping": None, "final_logit_softcapping": None}
LAYER_TYPES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}


def _rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, **values}}


LLAMA3_ROPE = _rope(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
LONG_ROPE = _rope(
    rope_type="longrope",
    type="longrope",
    long_factor=[1.0 + place for place in range(HEAD // 2)],
    short_factor=[1.0 + place / 16 for place in range(HEAD // 2)],
)

CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "opt": lambda **common: OPTConfig(**OPT, **common),
    "opt-350m": lambda **common: OPTConfig(
        **OPT | {"word_embed_proj_dim": EMBEDDED, "do_layer_norm_before": False}, **common
    ),
    "gpt2": lambda **common: GPT2Config(**OLDER, **common),
    "gpt2-chinese": lambda **common: GPT2Config(**OLDER, **common),
    "openai-gpt": lambda **common: OpenAIGPTConfig(**OLDER, **common),
    "gpt-bigcode": lambda **common: GPTBigCodeConfig(**OLDER, **common),
    "gptj": lambda **common: GPTJConfig(**OLDER, rotary_dim=8, **common),
    "codegen": lambda **common: CodeGenConfig(**OLDER, n_ctx=POSITIONS, rotary_dim=8, **common),
    "gpt-neox": lambda **common: GPTNeoXConfig(**SIZES, intermediate_size=FFN, **common),
    "bloom": lambda **common: BloomConfig(hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, **common),
    "mpt": lambda **common: MptConfig(d_model=WIDTH, n_heads=HEADS, n_layers=LAYERS, **common),
    "falcon-7b": lambda **common: FalconConfig(**FALCON, **common),
    "falcon-40b": lambda **common: FalconConfig(
        **FALCON, new_decoder_architecture=True, multi_query=False, num_kv_heads=2, **common
    ),
    "falcon-rw": lambda **common: FalconConfig(
        **FALCON, alibi=True, bias=True, multi_query=False, parallel_attn=False, **common
    ),
    "phi": lambda **common: PhiConfig(**SIZES, intermediate_size=FFN, **common),
    "xglm": lambda **common: XGLMConfig(**XGLM, **common),
    "llama2": lambda **common: LlamaConfig(**GATED, **common),
    "llama3": lambda **common: LlamaConfig(**GROUPED, **_rope(rope_theta=500_000.0), **common),
    "llama3.1": lambda **common: LlamaConfig(**GROUPED | {"max_position_embeddings": 131_072}, **LLAMA3_ROPE, **common),
    "smollm": lambda **common: LlamaConfig(**GROUPED, tie_word_embeddings=True, **common),
    "mistral": lambda **common: MistralConfig(**GROUPED, sliding_window=WINDOW, **common),
    "mistral-v3": lambda **common: MistralConfig(**GROUPED, sliding_window=None, **common),
    "phi3": lambda **common: Phi3Config(**GATED, **LONG_ROPE, original_max_position_embeddings=128, **common),
    "phi3-4k": lambda **common: Phi3Config(**GATED, **common),
    "qwen2": lambda **common: Qwen2Config(**GROUPED, **_rope(rope_theta=1_000_000.0), **common),
    "qwen3": lambda **common: Qwen3Config(
        **GROUPED | {"head_dim": 2 * HEAD}, **_rope(rope_theta=1_000_000.0), tie_word_embeddings=True, **common
    ),
    "gemma": lambda **common: GemmaConfig(**GROUPED | {"head_dim": 2 * HEAD, "num_key_value_heads": 1}, **common),
    "gemma2": lambda **common: Gemma2Config(**GEMMA2, **common),
    "gemma2-capped": lambda **common: Gemma2Config(
        **GEMMA2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}, **common
    ),
    "gemma3": lambda **common: Gemma3TextConfig(**GROUPED, **LAYER_TYPES, query_pre_attn_scalar=HEAD, **common),
    "gemma4": lambda **common: Gemma4TextConfig(
        **GROUPED,
        **LAYER_TYPES,
        global_head_dim=2 * HEAD,
        hidden_size_per_layer_input=0,
        final_logit_softcapping=30.0,
        **common,
    ),
}
"""By the family's name, or a form's."""
FORMS = {"llama3.1": "llama3", "phi3-4k": "phi3", "gemma2-capped": "gemma2"}
"""Other forms of families: Llama 3.1's slower rotation, Phi 3 without factors for long contexts, and Gemma 2 with the
caps on scores and logits that it was published with."""
