"""correlation.txt: Spearman's coefficient by its definition, in exact fractions.

Ranks are counted (how many are smaller, and half of how many others are equal), not sorted, and sums
are fractions, so that nothing is shared with the code under test but the definition. Where scipy is
installed, scipy.stats.spearmanr is asked as well and has to agree.
"""

import math
import random
from fractions import Fraction

from golden_common import HERE


def ranks(values):
    return [Fraction(sum(other < value for other in values))
            + Fraction(sum(other == value for other in values) + 1, 2) for value in values]


def spearman(a, b):
    mean = Fraction(len(a) + 1, 2)
    a, b = ([rank - mean for rank in ranks(values)] for values in (a, b))
    ab, aa, bb = (sum(x * y for x, y in zip(left, right)) for left, right in ((a, b), (a, a), (b, b)))
    return float(ab) / math.sqrt(aa * bb)


def cases():
    draw = random.Random(7)
    for length, values in ((5, 100), (12, 4), (40, 10), (40, 1000), (150, 25)):
        a = [draw.randrange(values) / 8 for _ in range(length)]
        for share in (0.0, 0.5, -0.9):
            yield a, [share * x * 8 + draw.randrange(values) for x in a]


def make():
    lines = []
    for a, b in cases():
        rho = spearman(a, b)
        try:
            from scipy.stats import spearmanr
            assert abs(spearmanr(a, b).statistic - rho) < 1e-12
        except ImportError:
            pass
        numbers = (" ".join(repr(float(x)) for x in side) for side in (a, b))
        lines.append(f"{rho!r}; {'; '.join(numbers)}\n")
    (HERE / "correlation.txt").write_text("".join(lines), encoding="utf-8")
