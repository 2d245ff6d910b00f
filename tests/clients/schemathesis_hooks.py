"""What schemathesis cannot know of the server it asks: SCHEMATHESIS_HOOKS names this module, PILLION_MODEL the model.

A schema cannot say that two fields depend on each other, or on the model. So requests that are sound but for that are made
sound here; what is wrong by the schema stays wrong.
"""

import os

import schemathesis

MODEL = os.environ["PILLION_MODEL"]
POSITIONS = 900
VOCABULARY = 500
MOST = 1 << 24


@schemathesis.hook
def before_call(context, case, kwargs):
    """Sees every request before it is sent."""
    if isinstance(case.body, dict):
        case.body = sound(dict(case.body))


def sound(body: dict) -> dict:
    """The body with what only the server can judge made sound."""
    if isinstance(body.get("model"), str):
        body["model"] = MODEL
    for name, least, most in (
        ("max_new_tokens", 1, 50),
        ("max_tokens", 1, 50),
        ("max_completion_tokens", 1, 50),
        ("min_new_tokens", 0, 1),
        ("min_tokens", 0, 1),
        ("sampling_topk", 0, VOCABULARY),
        ("n", 1, 4),
    ):
        if whole(body.get(name)) and least <= body[name] <= MOST:
            body[name] = min(int(body[name]), most)
    if whole(body.get("timeout_ms")) and 1 <= body["timeout_ms"] <= 86_400_000:
        body["timeout_ms"] = 60_000
    # Each of these is sound only beside another.
    if whole(body.get("max_tokens")) and whole(body.get("max_completion_tokens")):
        del body["max_tokens"]
    if whole(body.get("best_of")) and body["best_of"] >= 1:
        body["best_of"] = body["n"] if whole(body.get("n")) else 1
    if isinstance(body.get("stream_options"), dict) and body.get("stream") is not True:
        del body["stream_options"]
    if isinstance(body.get("sampling_topp"), (int, float)) and not whole(body.get("sampling_topk")):
        body["sampling_topk"] = 1
    if isinstance(body.get("messages"), list) and len(body["messages"]) <= 4096:
        body["messages"] = body["messages"][:20]
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        body["prompt"] = [known(item) for item in prompt][:20]
        if body.get("echo") is True and any(not isinstance(item, str) for item in prompt):
            body["echo"] = False
    return body


def whole(value) -> bool:
    """A whole number, as JSON has it: 1.0 is one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()


def known(item):
    """A token id that the model has, in place of one that it may not have."""
    if isinstance(item, list):
        return [known(inner) for inner in item]
    if whole(item) and 0 <= item < 1 << 32:
        return int(item) % VOCABULARY
    return item
