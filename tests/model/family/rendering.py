"""Chat templates, filled in as `apply_chat_template` of transformers does it."""

import json
from datetime import datetime
from typing import Any, ClassVar

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

Messages = list[dict[str, str]]


class Generation(Extension):
    """The block `{% generation %}` is its content: it only marks what a training learns from."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Macro) -> str:
        return caller()


def render(template: str, messages: Messages, special: dict[str, str], more: dict[str, Any]) -> str:
    """The chat as a text, with the beginning of the assistant's turn.

    `special` has `bos_token` and the like, `more` what a request gives beside its messages. A refusal of the template's
    is a `TemplateError`.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    made = environment.from_string(template)
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    return made.render(**given | special | more)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
