"""The shortest vector, with costs, of what weights on a few rows make: exactly, by active sets."""

import numpy as np
from jaxtyping import Float, Int

__all__ = ["ROUNDING", "ActiveSet"]

ROUNDING = 1e-9
"""Vectors and violations shorter than this, as a share of the longest row, are rounding."""

_REBUILT = 64  # changes after which the inverse is computed anew
_STALLED = 30  # steps in a row that gained nothing
_DOUBTFUL = 1e-5  # share of a row's square that others lack, below which rounding is asked for
_MIXTURE = 1e-9  # and below which they lack nothing
_TOGETHER = 8  # rows that enter at once, as long as that helps


class ActiveSet:
    """Weights ``z >= 0``, summing to one in every group, with the least ``|A'z| + c.z``.

    That is the largest margin that a vector of length 1 or less can have over these rows: by
    minimax, ``max_n sum_g min_{r in g} (a_r.n + c_r)``. On an active set ``I``, rows with positive
    weight, the optimum is in closed form. With ``G`` the Gram matrix of the rows, each longer by an
    indicator of its group (which adds a constant to ``|A'z|^2`` and makes ``G_I`` invertible),

    ``z = z0 + s z1,   z0 = G^-1 E M^-1 1,   z1 = G^-1 (E M^-1 E'G^-1 c - c),   M = E'G^-1 E``,

    where ``v0 = A'z0`` and ``v1 = A'z1`` are orthogonal, so that ``n = v1 + v0 / s`` has length 1
    for ``s = |v0| / sqrt(1 - |v1|^2)``. Where ``v0`` vanishes ``n = v1`` is shorter than 1, and
    where ``v1`` is longer than 1, weights go along ``z1`` until one is zero. Rows whose weight
    would be negative leave, the row that ``n`` serves worst enters.

    Attributes:
        rows: ``A``, one row each.
        cost: ``c``.
        group: Which group a row is in.
        name: Whatever the caller knows a row by.
        n: The best vector for these rows, of length 1 or less.
        value: ``|A'z| + c.z``: no vector has a larger margin, over these rows or more of them.

    References:
        Wolfe, "Finding the nearest point in a polytope", 1976; Lawson and Hanson, "Solving Least
        Squares Problems", 1974, chapter 23.
    """

    def __init__(
        self,
        rows: Float[np.ndarray, "row d"],
        cost: Float[np.ndarray, " row"],
        group: Int[np.ndarray, " row"],
        name: Int[np.ndarray, " row"],
    ) -> None:
        """Begin at one row of each group."""
        self.rows, self.cost, self.group, self.name = rows, cost, group, name
        self.groups = int(group.max()) + 1
        self.scale = float(np.linalg.norm(rows, axis=1).max()) or 1.0
        first = [int(np.flatnonzero(group == g)[0]) for g in range(self.groups)]
        self.active = np.array(first)
        self.z = np.ones(self.groups)
        self._rebuild()
        self._meet()

    def add(
        self,
        rows: Float[np.ndarray, "new d"],
        cost: Float[np.ndarray, " new"],
        group: int,
        name: Int[np.ndarray, " new"],
    ) -> None:
        """Further rows, none of which has weight yet."""
        self.rows = np.concatenate([self.rows, rows])
        self.cost = np.concatenate([self.cost, cost])
        self.group = np.concatenate([self.group, np.full(len(rows), group)])
        self.name = np.concatenate([self.name, name])

    def keep(self, kept: np.ndarray) -> None:
        """Forget rows; those with weight must be among the ones kept."""
        place = np.cumsum(kept) - 1
        self.active = place[self.active]
        self.rows, self.cost = self.rows[kept], self.cost[kept]
        self.group, self.name = self.group[kept], self.name[kept]

    @property
    def slack(self) -> Float[np.ndarray, " row"]:
        """By how much each row is above the rows with weight in its group; worst ones negative."""
        served = self.rows @ self.n + self.cost
        level = np.zeros(self.groups)
        np.add.at(level, self.group[self.active], self.z * served[self.active])
        return served - level[self.group]

    def solve(self, steps: int, *, stop_below: float = -np.inf) -> bool:
        """Improve the weights until no row is served worse than those with weight.

        Args:
            steps: How many rows may enter.
            stop_below: A `value` that is low enough.

        Returns:
            Whether the optimum, or that value, was found.
        """
        before, best, stalled = np.inf, np.inf, 0
        for _ in range(steps):
            if self.value <= stop_below:
                return True
            slack = self.slack
            slack[self.active] = 0
            if slack.min() > -ROUNDING * self.scale:
                if not self._changes:
                    return True
                self._rebuild()  # what many changes left of rounding must not decide
                self._meet()
                continue
            together = 1 if self.value >= before else _TOGETHER
            # Where the vector is so short that its direction is rounding, rows come and go.
            stalled = stalled + 1 if self.value > best - ROUNDING * self.scale else 0
            if stalled > _STALLED:
                return False
            before, best = self.value, min(best, self.value)
            for place, row in enumerate(_lowest(slack, together, -ROUNDING * self.scale)):
                self._enter(row, exchange=place == 0)
            self._meet()
        return False

    def _meet(self) -> None:
        """Go to the optimum on the active rows; those whose weight would be negative leave."""
        while True:
            goal = self._goal()
            falls = goal < self.z
            falls &= goal < 0
            if not falls.any():
                break
            steps = np.full(len(goal), np.inf)
            steps[falls] = self.z[falls] / (self.z[falls] - goal[falls])
            out = int(steps.argmin())
            self.z = self.z + steps[out] * (goal - self.z)
            self._leave(out)
        self.z = goal
        self._sum_to_one()
        v = self.z @ self._active_rows
        self.value = float(np.linalg.norm(v) + self.z @ self.cost[self.active])

    def _goal(self) -> Float[np.ndarray, " active"]:
        """The optimum on the active rows, whatever the signs of weights; sets `n`."""
        m = len(self.active)
        inverse, cost = self._inverse[:m, :m], self.cost[self.active]
        inside = self.group[self.active][:, None] == np.arange(self.groups)
        spread = inverse @ np.column_stack([inside, cost])
        across = inside.T @ spread
        both = np.linalg.solve(
            across[:, :-1], np.column_stack([np.ones(self.groups), across[:, -1]])
        )
        z0, z1 = (spread[:, :-1] @ both).T
        z1 = z1 - spread[:, -1]
        v0, v1 = np.stack([z0, z1]) @ self._active_rows
        long0, long1 = float(np.linalg.norm(v0)), float(np.linalg.norm(v1))
        if long1 >= 1:
            self.n = v1 / long1
            return self.z + z1 * (1e3 / np.abs(z1).max())  # far beyond where a weight is zero
        left = np.sqrt(1 - long1**2)
        if long0 <= ROUNDING * self.scale:
            self.n = v1
            return z0
        self.n = v1 + v0 * (left / long0)
        self.n /= max(1.0, float(np.linalg.norm(self.n)))
        return z0 + (long0 / left) * z1

    def _enter(self, row: int, exchange: bool) -> None:
        m = len(self.active)
        cross = self._active_rows @ self.rows[row]
        cross += self.scale**2 * (self.group[self.active] == self.group[row])
        own = self.rows[row] @ self.rows[row] + self.scale**2
        mix = self._inverse[:m, :m] @ cross
        rest = own - cross @ mix
        if rest < _DOUBTFUL * own:
            mix, rest = self._nearest(row, mix)
        if rest <= _MIXTURE * own:  # the row is a mixture of active ones: it replaces one
            if exchange:
                self._exchange(row, mix)
            return
        self._reserve(m + 1)
        self._inverse[:m, :m] += np.outer(mix / rest, mix)
        self._inverse[m, :m] = self._inverse[:m, m] = -mix / rest
        self._inverse[m, m] = 1 / rest
        self._buffer[m] = self.rows[row]
        self.active = np.append(self.active, row)
        self.z = np.append(self.z, 0.0)
        self._changed(1 if rest > _DOUBTFUL * own else _REBUILT)

    def _nearest(
        self, row: int, mix: Float[np.ndarray, " active"]
    ) -> tuple[Float[np.ndarray, " active"], float]:
        """The mixture of active rows nearest to a row, and the square of what it lacks.

        From the difference itself: that of squares is lost in rounding where it is small.
        """
        m, each = len(self.active), np.arange(self.groups)
        belongs = self.scale * (self.group[self.active][:, None] == each)
        longer = np.column_stack([self._active_rows, belongs])
        wanted = np.append(self.rows[row], self.scale * (self.group[row] == each))
        mix = mix + self._inverse[:m, :m] @ (longer @ (wanted - mix @ longer))
        lacks = wanted - mix @ longer
        return mix, float(lacks @ lacks)

    def _exchange(self, row: int, mix: Float[np.ndarray, " active"]) -> None:
        """Weight goes over to a row from the mixture of rows that equals it, until one has none."""
        ratio = np.full(len(mix), np.inf)
        shrinks = mix > 1e-9
        ratio[shrinks] = self.z[shrinks] / mix[shrinks]
        # Of several that have none at the same time the one that makes the best basis.
        out = int(np.where(ratio <= ratio.min() + 1e-14, mix, -np.inf).argmax())
        self.z = self.z - ratio[out] * mix
        self.z[out] = ratio[out]
        self.active[out] = row
        self._rebuild()

    def _leave(self, place: int) -> None:
        m = len(self.active)
        inverse = self._inverse[:m, :m]
        column = inverse[:, place].copy()
        inverse -= np.outer(column / column[place], column)
        last = m - 1
        if place != last:  # the last takes its place
            inverse[place], inverse[:, place] = inverse[last], inverse[:, last]
            inverse[place, place] = inverse[last, last]
            self.active[place], self.z[place] = self.active[last], self.z[last]
            self._buffer[place] = self._buffer[last]
        self.active, self.z = self.active[:last], self.z[:last]
        self._changed()

    def _changed(self, weight: int = 1) -> None:
        self._changes += weight
        if self._changes >= _REBUILT:
            self._rebuild()

    def _rebuild(self) -> None:
        m = len(self.active)
        self._inverse, self._buffer = np.zeros((2 * m, 2 * m)), np.zeros((2 * m, len(self.rows.T)))
        active = self._buffer[:m] = self.rows[self.active]
        same = self.group[self.active][:, None] == self.group[self.active]
        gram = active @ active.T + self.scale**2 * same
        self._inverse[:m, :m] = np.linalg.inv(gram)
        self._changes = 0

    def _reserve(self, size: int) -> None:
        """Room for more active rows; what there is doubles at a time."""
        if size > len(self._inverse):
            self._inverse = np.pad(self._inverse, (0, size))
            self._buffer = np.pad(self._buffer, ((0, size), (0, 0)))

    @property
    def _active_rows(self) -> Float[np.ndarray, "active d"]:
        return self._buffer[: len(self.active)]

    def _sum_to_one(self) -> None:
        """Take out rounding: weights are a certificate only if they are exactly what they say."""
        self.z = np.maximum(self.z, 0)
        total = np.zeros(self.groups)
        np.add.at(total, self.group[self.active], self.z)
        self.z = self.z / total[self.group[self.active]]


def _lowest(slack: Float[np.ndarray, " row"], k: int, below: float) -> list[int]:
    """The rows with the lowest slack, as far as it is below a bound."""
    k = min(k, len(slack))
    some = np.argpartition(slack, k - 1)[:k]
    some = some[slack[some].argsort()]
    return some[slack[some] < below].tolist()
