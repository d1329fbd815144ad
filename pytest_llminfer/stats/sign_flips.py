"""The exact test of sign flips: whether questions were lost more often than won, with the question as the unit.

D_i = s_i / K - Y_i is what the new run lost at question i. A change that only decides near ties anew, such as another kernel, loses
as often as it wins: given its size, each D_i was as likely to have the other sign. Nothing is assumed of how much the recorded
runs differ among themselves, which is what the test of exchangeability takes for all the noise there is
(docs/methods.md#sign-flips). With K = 1 both are McNemar's test. NumPy is imported where an array is needed, not with the module.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pytest_llminfer.stats import paired

if TYPE_CHECKING:
    from collections.abc import Mapping


def p_value(table: Mapping[int, int]) -> float:
    """The chance of at least the sum of these changes if each were as likely to have the other sign.

    table: a change, a whole number in any unit, to how many questions changed so. Exact: the upper tail of sum j (2 B_j - n_j),
    B_j ~ Binomial(n_j, 1/2) over the sizes j, by convolution; 1.0 where nothing changed.
    """
    sizes: Counter[int] = Counter()
    for change, count in table.items():
        sizes[abs(change)] += count
    sizes = Counter({size: count for size, count in sizes.items() if size and count})
    if not sizes:
        return 1.0
    import numpy as np

    density = np.ones(1)
    for size, count in sizes.items():
        spread = np.zeros(size * count + 1)
        spread[::size] = _fair(count)
        density = np.convolve(density, spread)
    largest, seen = sum(size * count for size, count in sizes.items()), sum(change * count for change, count in table.items())
    # The place of a sum S in steps of 2 from -largest on.
    return min(1.0, float(density[(largest + seen) // 2 :].sum()))


@lru_cache(maxsize=4096)
def smallest_detectable_drop(n: int, runs: int, discordance: float, alpha: float = 0.01, power: float = 0.8) -> float:
    """The drop (a share) that both exact tests over n questions, of sign flips and of exchangeability, report with ``power``.

    Of the two the sign flips ask for more: what McNemar's test asks for at a discordance of d/2 (1 + 1/K), which is what model A
    (docs/methods.md#model-a) leaves of a discordance d between two runs beside K recorded ones. 1.0 where no drop is seen.
    """
    return paired.smallest_detectable_drop(n=n, discordance=discordance / 2 * (1 + 1 / runs), alpha=alpha, power=power)


@lru_cache(maxsize=8192)
def _fair(n: int) -> Any:
    """P(X = 0 … n) of Binomial(n, 1/2), float64 (n + 1,)."""
    import numpy as np

    log_ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    return np.exp(np.array(log_ways) - n * math.log(2))
