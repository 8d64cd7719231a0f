"""How much of what a caption asks for is in a scene."""

from __future__ import annotations

from collections.abc import Sequence

from tpdm.tinyworld.grammar import Scene, SceneObject


def accuracy(asked: Scene, seen: Scene) -> float:
    """Share of what was asked that is there, in [0, 1].

    The objects asked for are matched with different objects seen so that as many as possible fit every attribute the
    caption names; the count is divided by the larger of the two numbers of objects, so that extra objects cost as
    much as missing ones. A background counts as one more object where the caption names it.
    """
    right = matched_objects(asked.objects, seen.objects)
    total = max(len(asked.objects), len(seen.objects))
    if asked.background is not None:
        right += asked.background == seen.background
        total += 1
    return right / max(1, total)


def matched_objects(asked: Sequence[SceneObject], seen: Sequence[SceneObject]) -> int:
    """Size of the largest matching between descriptions and objects that they admit."""
    fits = [[i for i, s in enumerate(seen) if a.admits(s)] for a in asked]
    owner: dict[int, int] = {}

    def claim(a: int, tried: set[int]) -> bool:
        for s in fits[a]:
            if s not in tried:
                tried.add(s)
                if s not in owner or claim(owner[s], tried):
                    owner[s] = a
                    return True
        return False

    return sum(claim(a, set()) for a in range(len(asked)))
