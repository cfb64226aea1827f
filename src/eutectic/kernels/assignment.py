"""similarities -> the assignment with the largest sum, and the prices that prove it: for large matrices.

Rows bid for columns. A column has a price, a row gains its similarity less the price, and prices are such that every
row which has a column gains most with that one. Row after row gets one along the shortest augmenting path, where an
edge is as long as what its row would lose on it: the algorithm of Jonker and Volgenant (Computing 38, 1987).

What makes it fast is that a row is hardly ever read as a whole. Prices only rise, so a row's best columns, once listed,
and the most that it gained with any other, bound what it can gain later. A path looks at the lists, and makes a row's
list anew only when it has become longer than that bound allows. The worst case is as bad as for any such algorithm:
n²·m, on a product of two vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.fused import compiled

# Columns that are listed for a row: measured with 16, 32 and 64.
LISTED = 16


class Market(NamedTuple):
    """What is known between two paths, and the scratch of one. n rows, m ≥ n columns; a heap of columns and rows.

    Attributes:
        similarity: (n, m).
        prices: (m,) float64, zero for a column without a row.
        column_of: (n,), −1 for a row without one.
        row_of: (m,), −1 for a column without one.
        listed: (n, K) the columns with which a row gained most when they were listed.
        beyond: (n,) the most it gained then with any other.
        when: (n,) the path on which they were listed, by its root; −1 before all.
        distance: (m + n,) from the root to column j; of m + i: the least to whatever row i has not listed.
        parent: (m,) the row from which a column was reached.
        level: (n,) distance of a row plus what it gains.
        heap: (m + n,) columns j and rows m + i, the nearest first.
        place: (m + n,) where in the heap; −1 not yet there, −2 no longer.
        reached: (m + 2n,) all that came into the heap on this path; rows may come twice.
        sizes: (2,) entries of the heap, and reached.
    """

    similarity: Any
    prices: Any
    column_of: Any
    row_of: Any
    listed: Any
    beyond: Any
    when: Any
    distance: Any
    parent: Any
    level: Any
    heap: Any
    place: Any
    reached: Any
    sizes: Any


def assignment(similarity: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The columns of the rows in the assignment with the largest Σ similarity, and the columns' prices.

    Args:
        similarity: (n, m) float32 or float64, n ≤ m, finite. Sums are float64.

    Returns (n,) int64 and (m,) float64. Prices p ≥ 0, zero where a column is left over, with
    Σᵢ maxⱼ(sᵢⱼ − pⱼ) + Σ p = Σ s[i, column of i], prove that no assignment is better (linear programming duality).
    """
    n, m = similarity.shape
    many = min(LISTED, m)
    market = Market(
        similarity=np.ascontiguousarray(similarity),
        prices=np.zeros(m),
        column_of=np.full(n, -1),
        row_of=np.full(m, -1),
        listed=np.empty((n, many), np.int64),
        beyond=np.empty(n),
        when=np.full(n, -1),
        distance=np.full(m + n, np.inf),
        parent=np.empty(m, np.int64),
        level=np.empty(n),
        heap=np.empty(m + n, np.int64),
        place=np.full(m + n, -1),
        reached=np.empty(m + 2 * n, np.int64),
        sizes=np.zeros(2, np.int64),
    )
    assign_rows(market)
    return market.column_of, market.prices


@compiled
def assign_rows(market: Any) -> None:
    """Gives every row a column."""
    for row in range(len(market.column_of)):
        list_columns(market, row, -1)
    for row in range(len(market.column_of)):
        column = nearest_free(market, row)
        hand_over(market, row, column)


@compiled
def list_columns(market: Any, row: int, path: int) -> None:
    """Lists the columns with which a row now gains most, and the best gain of the others."""
    values, prices = market.similarity[row], market.prices
    # A heap of the best so far, the least of them on top: at the end that is the best of the others.
    gains = np.full(market.listed.shape[1] + 1, -np.inf)
    columns = np.empty(len(gains), np.int64)
    for column in range(len(values)):
        gain = values[column] - prices[column]
        if gain > gains[0]:
            at = 0
            while True:
                below = 2 * at + 1
                if below + 1 < len(gains) and gains[below + 1] < gains[below]:
                    below += 1
                if below >= len(gains) or gains[below] >= gain:
                    break
                gains[at], columns[at] = gains[below], columns[below]
                at = below
            gains[at], columns[at] = gain, column
    market.listed[row] = columns[1:]
    market.beyond[row] = gains[0]
    market.when[row] = path


@compiled
def nearest_free(market: Any, root: int) -> Any:
    """The nearest column without a row, by the shortest path from a row without a column. Raises the prices on it."""
    row_of, distance, prices = market.row_of, market.distance, market.prices
    market.level[root] = 0.0
    limit = look_at_list(market, root, np.inf)
    while True:
        item = nearest(market.heap, market.place, distance, market.sizes)
        if item >= len(prices):
            limit = look_further(market, item - len(prices), root, limit)
        elif row_of[item] < 0:
            raise_prices(market, distance[item])
            return item
        else:
            row = row_of[item]
            market.level[row] = distance[item] + market.similarity[row, item] - prices[item]
            limit = look_at_list(market, row, limit)


@compiled
def look_at_list(market: Any, row: int, limit: float) -> Any:
    """Reaches the listed columns of a row, and notes how near the others may be."""
    limit = reach(market, row, market.listed[row], limit)
    least = market.level[row] - market.beyond[row]
    if least < limit:
        put(market.heap, market.place, market.distance, market.reached, market.sizes, len(market.prices) + row, least)
    return limit


@compiled
def look_further(market: Any, row: int, path: int, limit: float) -> Any:
    """Lists the columns of a row anew; where this path has done that already, reaches every one."""
    if market.when[row] != path:
        list_columns(market, row, path)
        market.place[len(market.prices) + row] = -1
        market.distance[len(market.prices) + row] = np.inf
        return look_at_list(market, row, limit)
    return reach(market, row, np.arange(len(market.prices)), limit)


@compiled
def reach(market: Any, row: int, columns: Any, limit: float) -> Any:
    """Reaches columns from a row where that is nearer than before, and than the nearest free one so far, `limit`."""
    # Taken out of the market once: each time counts references.
    values, prices, row_of, parent = market.similarity[row], market.prices, market.row_of, market.parent
    heap, place, distance, reached, sizes = market.heap, market.place, market.distance, market.reached, market.sizes
    level = market.level[row]
    for column in columns:
        length = level - (values[column] - prices[column])
        if length < limit and length < distance[column] and place[column] != -2:
            put(heap, place, distance, reached, sizes, column, length)
            parent[column] = row
            if row_of[column] < 0:
                limit = length
    return limit


@compiled
def put(heap: Any, place: Any, distance: Any, reached: Any, sizes: Any, item: int, length: float) -> None:
    """Puts a column or row into the heap, or nearer to its top."""
    distance[item] = length
    at = place[item]
    if at == -1:
        at = sizes[0]
        sizes[0] += 1
        reached[sizes[1]] = item
        sizes[1] += 1
    while at > 0 and distance[heap[(at - 1) >> 1]] > length:
        heap[at] = heap[(at - 1) >> 1]
        place[heap[at]] = at
        at = (at - 1) >> 1
    heap[at], place[item] = item, at


@compiled
def nearest(heap: Any, place: Any, distance: Any, sizes: Any) -> Any:
    """Takes what is nearest out of the heap."""
    first = heap[0]
    place[first] = -2
    sizes[0] -= 1
    size = sizes[0]
    moved, at = heap[size], 0
    while True:
        below = 2 * at + 1
        if below + 1 < size and distance[heap[below + 1]] < distance[heap[below]]:
            below += 1
        if below >= size or distance[heap[below]] >= distance[moved]:
            break
        heap[at] = heap[below]
        place[heap[at]] = at
        at = below
    if size:
        heap[at], place[moved] = moved, at
    return first


@compiled
def raise_prices(market: Any, length: float) -> None:
    """Ends a path of that length: columns nearer than its end cost more by what they are nearer. Clears the scratch."""
    for item in market.reached[: market.sizes[1]]:
        if item < len(market.prices) and market.place[item] == -2:
            market.prices[item] += length - market.distance[item]
        market.place[item] = -1
        market.distance[item] = np.inf
    market.sizes[:] = 0


@compiled
def hand_over(market: Any, root: int, column: int) -> None:
    """Gives each row on the path the column that it was reached for."""
    row = -1
    while row != root:
        row = market.parent[column]
        market.row_of[column] = row
        before = market.column_of[row]
        market.column_of[row] = column
        column = before
