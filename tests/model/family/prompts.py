"""What the models are asked: texts, and conversations."""

from random_model import COMMON_WORDS

Request = tuple[str, int]
"""A text, and how many tokens the answer may have."""
NEW_TOKENS = 24


def requests(special: str) -> list[Request]:
    """Texts of all kinds. One has the text of a `special` token within it."""
    return [
        ("Hello world", NEW_TOKENS),
        ("What is 17 + 25?", NEW_TOKENS),
        ("a", NEW_TOKENS),
        ("The dog went to the water.", 1),
        ("one\ntwo\n\nthree\n", NEW_TOKENS),
        ("Café naïve \U0001f600 good", NEW_TOKENS),
        ("  before and after  ", NEW_TOKENS),
        (" ".join(COMMON_WORDS[20:60]) + ", what now?", NEW_TOKENS),
        (f"This {special} is a text", NEW_TOKENS),
        ("if (x) {\n    return y;\n}", 5),
        ("People write about the old house near the large tree", NEW_TOKENS),
        ("say it again:", NEW_TOKENS),
    ]


def windowed() -> list[Request]:
    """Prompts that are longer than a window."""
    words = COMMON_WORDS * 2
    return [
        (" ".join(words[first : first + number]) + end, NEW_TOKENS)
        for first, number, end in ((0, 110, ""), (40, 120, "."), (90, 150, " why?"))
    ]


def conversations() -> list[list[dict[str, str]]]:
    """One message; one of the system's before it; three turns; spaces and lines around and within."""
    return [
        [_said("user", "What is your name?")],
        [_said("system", "You answer in few words."), _said("user", "Where is the water?")],
        [_said("user", "Hello"), _said("assistant", "Hello, how are you?"), _said("user", "Tell me about the sea.")],
        [_said("user", "  Read this:\n\n    one line\n\tanother é\n\nand say  it again.  \n")],
    ]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
