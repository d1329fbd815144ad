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
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_STEPS = 60


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

    Model A (docs/methods.md#model-a), normal approximation, of the sign flips, which ask for more: z_alpha sqrt(d/2 (1 + 1/K) +
    drop) + z_power sqrt(d/2 (1 + 1/K) + drop - drop^2) = drop sqrt(n). Never less than the fewest pure losses that are significant,
    7 questions at 1 %; 1.0 where no drop is.
    """
    if n == 0:
        return 1.0
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(power)
    benign = discordance / 2 * (1 + 1 / runs)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        spread = z_alpha * math.sqrt(benign + middle) + z_power * math.sqrt(max(0.0, benign + middle - middle**2))
        low, high = (low, middle) if spread <= middle * math.sqrt(n) else (middle, high)
    fewest = math.floor(-math.log2(alpha)) + 1
    return min(1.0, max(high, fewest / n))


@lru_cache(maxsize=8192)
def _fair(n: int) -> Any:
    """P(X = 0 … n) of Binomial(n, 1/2), float64 (n + 1,)."""
    import numpy as np

    log_ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    return np.exp(np.array(log_ways) - n * math.log(2))
