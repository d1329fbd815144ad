"""Number ranges of the synthetic problems, and the arithmetic statements of their solutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from synthetic_vocabulary import GOODS, ITEMS, NAMES, PLACES

if TYPE_CHECKING:
    import random

Range = tuple[int, int]
EVEN = 0.5
"""An even chance."""


class Worked(NamedTuple):
    """A question, the steps of its solution, one line each, and its answer."""

    question: str
    steps: list[str]
    answer: int


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The dial: inclusive number ranges, and how often a number is drawn from the long ranges.

    ``long_share`` is the probability, per drawn quantity, of the long range. The other fields come in pairs: the usual range
    and the long one. Products are ``factor`` times ``multiplier``; divisions are exact, ``quotient`` times ``divisor`` being
    the dividend.
    """

    long_share: float = 0.3
    amount: Range = (20, 999)
    long_amount: Range = (1000, 9999)
    factor: Range = (12, 99)
    long_factor: Range = (100, 999)
    multiplier: Range = (3, 12)
    long_multiplier: Range = (13, 99)
    quotient: Range = (11, 150)
    long_quotient: Range = (21, 399)
    divisor: Range = (3, 9)
    long_divisor: Range = (11, 49)


DIFFICULTIES: dict[str, Difficulty] = {
    "easy": Difficulty(long_share=0.15),
    "medium": Difficulty(long_share=0.3),
    "hard": Difficulty(long_share=0.45),
}
"""Named settings of the dial; the training command and the bundled set name one of them."""


class Draw:
    """Draws the words and numbers of one problem from a random generator."""

    __slots__ = ("_difficulty", "_random")

    def __init__(self, random_source: random.Random, difficulty: Difficulty) -> None:
        self._random = random_source
        self._difficulty = difficulty

    def name(self) -> str:
        """Draw one first name."""
        return self._random.choice(NAMES)

    def names(self, count: int) -> list[str]:
        """Draw ``count`` different first names."""
        return self._random.sample(NAMES, count)

    def item(self) -> str:
        """Draw one plural thing."""
        return self._random.choice(ITEMS)

    def items(self, count: int) -> list[str]:
        """Draw ``count`` different plural things."""
        return self._random.sample(ITEMS, count)

    def goods(self, count: int) -> list[str]:
        """Draw ``count`` different single things that have a price."""
        return self._random.sample(GOODS, count)

    def place(self) -> str:
        """Draw one place."""
        return self._random.choice(PLACES)

    def word(self, *words: str) -> str:
        """Draw one of the words given."""
        return self._random.choice(words)

    def few(self) -> int:
        """Draw a number from 2 to 9."""
        return self._random.randint(2, 9)

    def amount(self) -> int:
        """Draw a quantity to be added or subtracted."""
        dial = self._difficulty
        return self._random.randint(*(dial.long_amount if self._long() else dial.amount))

    def part(self, total: int) -> int:
        """Draw a quantity between a tenth and nine tenths of ``total``, at least 1."""
        return self._random.randint(max(1, total // 10), max(1, total * 9 // 10))

    def factors(self) -> tuple[int, int]:
        """Draw the two factors of a product; the second one is the smaller range."""
        dial = self._difficulty
        if not self._long():
            return self._random.randint(*dial.factor), self._random.randint(*dial.multiplier)
        if self._long():
            return self._random.randint(*dial.long_factor), self._random.randint(*dial.long_multiplier)
        if self._random.random() < EVEN:
            return self._random.randint(*dial.long_factor), self._random.randint(*dial.multiplier)
        return self._random.randint(*dial.factor), self._random.randint(*dial.long_multiplier)

    def division(self) -> tuple[int, int, int]:
        """Draw dividend, divisor and quotient of an exact division."""
        dial = self._difficulty
        divisor = self._random.randint(*(dial.long_divisor if self._long() else dial.divisor))
        quotient = self._random.randint(*(dial.long_quotient if self._long() else dial.quotient))
        return divisor * quotient, divisor, quotient

    def _long(self) -> bool:
        return self._random.random() < self._difficulty.long_share


def add(*terms: int) -> str:
    """Write a sum of two or more terms, as in ``12 + 30 = 42``."""
    return f"{' + '.join(map(str, terms))} = {sum(terms)}"


def sub(left: int, right: int) -> str:
    """Write a difference that is not negative."""
    return f"{left} - {right} = {left - right}"


def mul(left: int, right: int) -> str:
    """Write a product of two factors."""
    return f"{left} * {right} = {left * right}"


def div(left: int, right: int) -> str:
    """Write an exact division."""
    return f"{left} / {right} = {left // right}"
