"""A layered layout from left to right of any graph without cycles, some of its paths kept straight.

Ranks, then an order within each rank with few crossings, then positions. Knows nothing of what is drawn.
Sugiyama, Tagawa, Toda 1981; positions by isotonic regression, which keeps order and distance exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

Key = Hashable
Point = tuple[float, float]
_SWEEPS, _ROUNDS = 16, 80
# How strongly neighbours pull: a straight path before all, then long wires, then the rest.
_STRAIGHT, _LONG, _SHORT = 1e9, 4.0, 1.0


@dataclass(frozen=True)
class Layout:
    """Where everything is.

    Attributes:
        centres: of the nodes.
        routes: for every edge, in the order given, its points from the right side of one node to the
            left side of the other. The first pair and every second pair after it lies between ranks.
    """

    centres: dict[Key, Point]
    routes: list[tuple[Point, ...]]


def layered(
    sizes: Mapping[Key, tuple[float, float]],
    edges: Sequence[tuple[Key, Key]],
    straight: Collection[Sequence[Key]] = (),
    early: Collection[Key] = (),
    distance: float = 16.0,
    channel: float = 34.0,
) -> Layout:
    """Lay a graph out.

    Args:
        sizes: width and height of each node.
        edges: from left to right.
        straight: paths whose nodes get the same height; no node is on two of them.
        early: nodes that stand as far left as they can; others stand as far right as they can.
        distance: between nodes of one rank. channel: between ranks.
    """
    return _Layout(sizes, edges, straight, early, distance, channel).made()


class _Layout:
    def __init__(
        self,
        sizes: Mapping[Key, tuple[float, float]],
        edges: Sequence[tuple[Key, Key]],
        straight: Collection[Sequence[Key]],
        early: Collection[Key],
        distance: float,
        channel: float,
    ) -> None:
        self.sizes, self.edges = dict(sizes), edges
        self.distance, self.channel = distance, channel
        self.rank = _ranks(list(sizes), edges, early)
        self.paths: list[list[Key]] = [[] for _ in straight]  # the straight ones, with their dummies
        self.chains = self._with_dummies(straight)
        self.on_path = {n: place for place, path in enumerate(self.paths) for n in path}
        self.before: dict[Key, list[Key]] = defaultdict(list)
        self.after: dict[Key, list[Key]] = defaultdict(list)
        for chain in self.chains:
            for a, b in pairwise(chain):
                self.after[a].append(b)
                self.before[b].append(a)
        last = max(self.rank.values())
        self.ranks = [[n for n in self.sizes if self.rank[n] == q] for q in range(last + 1)]

    def made(self) -> Layout:
        self._order()
        heights = self._heights()
        left, right = self._columns(heights)
        centres = {n: ((left[self.rank[n]] + right[self.rank[n]]) / 2, heights[n]) for n in self.sizes}
        routes = [self._route(chain, centres, left, right) for chain in self.chains]
        return Layout({n: p for n, p in centres.items() if not isinstance(n, _Dummy)}, routes)

    def _with_dummies(self, straight: Collection[Sequence[Key]]) -> list[list[Key]]:
        """Every edge as a chain with a place in each rank that it passes."""
        steps = {pair: i for i, path in enumerate(straight) for pair in pairwise(path)}
        chains = []
        for number, (a, b) in enumerate(self.edges):
            inner = [_Dummy(number, q) for q in range(self.rank[a] + 1, self.rank[b])]
            for dummy in inner:
                self.sizes[dummy], self.rank[dummy] = (0.0, 6.0), dummy.rank
            chain: list[Key] = [a, *inner, b]
            chains.append(chain)
            if (a, b) in steps:
                path = self.paths[steps[a, b]]
                path += [n for n in chain if n not in path]
        return chains

    def _order(self) -> None:
        """Sort the ranks until wires cross as little as was found."""
        best, fewest = [rank[:] for rank in self.ranks], self._crossings()
        for sweep in range(_SWEEPS):
            is_forward = sweep % 2 == 0
            places = range(1, len(self.ranks)) if is_forward else range(len(self.ranks) - 2, -1, -1)
            for q in places:
                self._sort(q, q - 1 if is_forward else q + 1, self.before if is_forward else self.after)
            for q in range(len(self.ranks)):
                self._swap(q)
            now = self._crossings()
            if now < fewest:
                best, fewest = [rank[:] for rank in self.ranks], now
        self.ranks = best
        self._uncross_paths()

    def _uncross_paths(self) -> None:
        """Give the straight paths the same order in every rank: the one with the fewest crossings."""
        before, tried = self.ranks, []
        for order in permutations(range(len(self.paths))):
            self.ranks = [_reordered(rank, self.on_path, order) for rank in before]
            for _ in range(_SWEEPS):
                for q in range(len(self.ranks)):
                    self._swap(q, is_final=True)
            tried.append((self._crossings(), order, self.ranks))
        _, self.path_order, self.ranks = min(tried, key=lambda found: found[:2])

    def _sort(self, q: int, beside: int, neighbours: Mapping[Key, list[Key]]) -> None:
        """Each node of a rank to the mean place of its neighbours."""
        place = {n: i for i, n in enumerate(self.ranks[beside])}
        wanted = {}
        for i, n in enumerate(self.ranks[q]):
            found = [place[m] for m in neighbours[n]]
            wanted[n] = sum(found) / len(found) if found else float(i)
        self.ranks[q].sort(key=wanted.__getitem__)

    def _swap(self, q: int, *, is_final: bool = False) -> None:
        """Exchange nodes side by side where their wires then cross less."""
        rank = self.ranks[q]
        places: dict[Key, int] = {}
        for beside in (q - 1, q + 1):
            if 0 <= beside < len(self.ranks):
                places |= {n: i for i, n in enumerate(self.ranks[beside])}
        for i in range(len(rank) - 1):
            a, b = rank[i], rank[i + 1]
            if is_final and a in self.on_path and b in self.on_path:
                continue
            now = later = 0
            for neighbours in (self.before, self.after):
                for m in neighbours[a]:
                    for n in neighbours[b]:
                        now += places[m] > places[n]
                        later += places[m] < places[n]
            if later < now:
                rank[i], rank[i + 1] = b, a

    def _crossings(self) -> int:
        total = 0
        for left, right in pairwise(self.ranks):
            place = {n: i for i, n in enumerate(right)}
            ends = [e for n in left for e in sorted(place[m] for m in self.after[n])]
            total += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
        return total

    def _heights(self) -> dict[Key, float]:
        height = {n: 40.0 * i for rank in self.ranks for i, n in enumerate(rank)}
        for turn in range(_ROUNDS):
            fixed = self._straightened(height)
            for rank in self.ranks if turn % 2 else reversed(self.ranks):
                self._settle(rank, height, fixed)
        top = min(height[n] - self.sizes[n][1] / 2 for n in height)
        return {n: value - top for n, value in height.items()}

    def _straightened(self, height: dict[Key, float]) -> dict[Key, float]:
        """One height for each straight path: its mean, but far enough below the path above it."""
        found: dict[int, float] = {}
        for place, path in enumerate(self.path_order):
            nodes = self.paths[path]
            lowest = [found[above] + self._between(above, path) for above in self.path_order[:place]]
            found[path] = max([sum(height[n] for n in nodes) / len(nodes), *lowest])
        return {n: found[path] for n, path in self.on_path.items()}

    def _between(self, above: int, below: int) -> float:
        """The distance that the nodes between two paths need in the fullest rank."""
        most = 0.0
        for rank in self.ranks:
            places = {self.on_path[n]: i for i, n in enumerate(rank) if n in self.on_path}
            if above in places and below in places:
                offsets = self._offsets(rank)
                most = max(most, offsets[places[below]] - offsets[places[above]])
        return most

    def _offsets(self, rank: list[Key]) -> list[float]:
        """Heights of the nodes of a rank if they stand as close as they may."""
        made = [0.0]
        for a, b in pairwise(rank):
            made.append(made[-1] + (self.sizes[a][1] + self.sizes[b][1]) / 2 + self.distance)
        return made

    def _settle(self, rank: list[Key], height: dict[Key, float], fixed: dict[Key, float]) -> None:
        """Nodes of a rank to the mean height of their neighbours; order and distances stay (pool
        adjacent violators)."""
        blocks: list[tuple[float, float, list[tuple[Key, float]]]] = []
        for n, offset in zip(rank, self._offsets(rank), strict=True):
            pulls = [(height[m], self._weight(m, n)) for m in self.before[n]]
            pulls += [(height[m], self._weight(n, m)) for m in self.after[n]]
            pulls = [(fixed[n], _STRAIGHT)] if n in fixed else pulls
            weight = sum(w for _, w in pulls) or 0.01
            mean = sum(h * w for h, w in pulls) / weight if pulls else height[n]
            blocks.append((mean - offset, weight, [(n, offset)]))
            while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                (mean2, weight2, nodes2), (mean1, weight1, nodes1) = blocks.pop(), blocks.pop()
                both = weight1 + weight2
                mean = (mean1 * weight1 + mean2 * weight2) / both
                blocks.append((mean, both, nodes1 + nodes2))
        for mean, _, nodes in blocks:
            for n, offset in nodes:
                height[n] = mean + offset

    def _weight(self, a: Key, b: Key) -> float:
        return _LONG if isinstance(a, _Dummy) and isinstance(b, _Dummy) else _SHORT

    def _columns(self, heights: Mapping[Key, float]) -> tuple[list[float], list[float]]:
        """Left and right side of every rank. Many or steep wires between two ranks get more room."""
        left, right, x = [], [], 0.0
        for rank in self.ranks:
            left.append(x)
            right.append(x + max(self.sizes[n][0] for n in rank))
            wires = sum(len(self.after[n]) for n in rank)
            rise = max((abs(heights[n] - heights[m]) for n in rank for m in self.after[n]), default=0.0)
            x = right[-1] + self.channel + min(max(3.0 * (wires - 4), 0.3 * rise), 40.0)
        return left, right

    def _route(
        self, chain: list[Key], centres: dict[Key, Point], left: list[float], right: list[float]
    ) -> tuple[Point, ...]:
        points: list[Point] = []
        for place, n in enumerate(chain):
            (x, y), half, q = centres[n], self.sizes[n][0] / 2, self.rank[n]
            if place == 0:
                points += [(x + half, y), (right[q], y)]
            elif place == len(chain) - 1:
                points += [(left[q], y), (x - half, y)]
            else:
                points += [(left[q], y), (right[q], y)]
        return tuple(points)


@dataclass(frozen=True)
class _Dummy:
    """Where an edge passes a rank."""

    edge: int
    rank: int


def _reordered(rank: list[Key], on_path: dict[Key, int], order: Sequence[int]) -> list[Key]:
    """A rank with the nodes of straight paths in the order of the paths, in the places they had."""
    places = [i for i, n in enumerate(rank) if n in on_path]
    nodes = sorted((rank[i] for i in places), key=lambda n: order.index(on_path[n]))
    made = rank[:]
    for i, n in zip(places, nodes, strict=True):
        made[i] = n
    return made


def _ranks(nodes: list[Key], edges: Sequence[tuple[Key, Key]], early: Collection[Key]) -> dict[Key, int]:
    """Longest path from the left; then every node as far right as its users allow, ends at the edge."""
    before: dict[Key, list[Key]] = defaultdict(list)
    after: dict[Key, list[Key]] = defaultdict(list)
    for a, b in edges:
        before[b].append(a)
        after[a].append(b)
    rank: dict[Key, int] = {}

    def of(n: Key) -> int:
        if n not in rank:
            rank[n] = 1 + max((of(m) for m in before[n]), default=-1)
        return rank[n]

    last = max(of(n) for n in nodes)
    for n in sorted(nodes, key=lambda n: -rank[n]):
        if not after[n] and before[n]:
            rank[n] = last
        elif after[n] and n not in early:
            rank[n] = min(rank[m] for m in after[n]) - 1
    return rank
