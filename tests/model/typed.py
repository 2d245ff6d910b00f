"""The ways in which people type a prompt, and which of them training never sees.

Each way is a choice in five respects. All choices are trained on, alone and together, but of the combinations one in
five is held out.
"""

import random
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields

import tasks

SIGNS = "?!.= "
USUAL = "as documented"
CASES: dict[str, Callable[[str], str]] = {
    USUAL: lambda text: text,
    "small first letter": lambda text: text[0].lower() + text[1:],
    "small": str.lower,
    "capital": str.upper,
    "capital first letters": lambda text: " ".join(word[0].upper() + word[1:] for word in text.split(" ")),
}
GAPS: dict[str, Callable[[str], str]] = {
    USUAL: lambda text: text,
    "all double": lambda text: text.replace(" ", "  "),
    "first double": lambda text: text.replace(" ", "  ", 1),
    "last double": lambda text: "  ".join(text.rsplit(" ", 1)),
}


@dataclass(frozen=True)
class Typing:
    """One way to type a prompt."""

    case: str
    gaps: str
    before: str
    after: str
    sign: bool

    def of(self, prompt: str, *, in_chat: bool = False) -> str:
        """The prompt, typed this way.

        Without a sign, an answer to "17+2" would begin like the prompt "17+21". So a number of one digit keeps the sign
        behind it, but not in a chat, where a message has an end of its own.
        """
        text = prompt
        if not self.sign:
            bare = prompt.rstrip(SIGNS)
            one_digit = bare[-1].isdigit() and not bare[-2].isdigit()
            text = bare if in_chat or not one_digit else prompt
        return self.before + GAPS[self.gaps](CASES[self.case](text)) + self.after

    @property
    def held_out(self) -> bool:
        usual = sum(value == choices[0] for value, choices in zip(astuple(self), CHOICES.values(), strict=True))
        return usual <= len(CHOICES) - 2 and tasks.held_out(repr(astuple(self)), 5)


CHOICES = {
    "case": tuple(CASES),
    "gaps": tuple(GAPS),
    "before": ("", " ", "  ", "\n", "\n\n"),
    "after": ("", " ", "  ", "\n", "\n\n", " \n"),
    "sign": (True, False),
}
"""The usual one first."""
AS_DOCUMENTED = Typing(*(choices[0] for choices in CHOICES.values()))
assert list(CHOICES) == [field.name for field in fields(Typing)]


def draw(rng: random.Random, *, unseen: bool) -> Typing:
    """A random way from one side of the split; each respect is usual more often than not."""
    while True:
        typing = Typing(*(rng.choice((choices[0], rng.choice(choices))) for choices in CHOICES.values()))
        if typing.held_out == unseen:
            return typing
