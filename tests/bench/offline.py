"""The best split of a batch into calls, sought offline: what calls cost is measured and fitted, and of all ways to cut the
sorted batch the one that is predicted to take least is taken (dynamic programming over the places of the cuts)."""

from time import perf_counter

import numpy as np

from model import Model

SIZES = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 5


class Cost:
    """Seconds of a call of `members`, whose prompts have from `shortest` to `longest` tokens: the shortest are fed in bulk, and
    what others have beyond that a step at a time."""

    def __init__(self, model: Model, prompts: dict[int, list[str]], most: int) -> None:
        self._most = most
        lengths = sorted(prompts)
        at = [lengths[len(lengths) * nth // 4] for nth in range(4)] + [lengths[-1]]
        shapes = [(size, a, b) for size in SIZES for a in at for b in at if a <= b and (size > 1 or a == b)]
        terms, seconds = [], []
        for size, shortest, longest in shapes:
            call = [prompts[shortest]] + [prompts[longest]] * (size - 1)
            times = []
            for _ in range(REPEATS):
                begun = perf_counter()
                model.generated(call, most)
                times.append(perf_counter() - begun)
            terms.append(self._terms(size, shortest, longest))
            seconds.append(min(times))
        weights = 1 / np.array(seconds)
        self._unit = np.linalg.lstsq(np.array(terms) * weights[:, None], np.ones(len(seconds)), rcond=None)[0]

    def _terms(self, members: int, shortest: int, longest: int) -> list[float]:
        steps = longest - shortest + self._most
        return [1.0, (shortest - 1.0) * members, float(steps), float(steps * members)]

    def __call__(self, members: int, shortest: int, longest: int) -> float:
        return float(np.dot(self._unit, self._terms(members, shortest, longest)))


def best_split(lengths: list[int], cost: Cost) -> list[int]:
    """Where each call of a sorted batch ends."""
    least, begins = [0.0], [0]
    for end in range(1, len(lengths) + 1):
        options = [least[a] + cost(end - a, lengths[a], lengths[end - 1]) for a in range(end)]
        begin = min(range(end), key=options.__getitem__)
        least.append(options[begin])
        begins.append(begin)
    ends, end = [], len(lengths)
    while end > 0:
        ends.append(end)
        end = begins[end]
    return ends[::-1]
