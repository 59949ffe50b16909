"""Sorting and crowding of NSGA-II as the paper writes them, with lists."""

import numpy as np


def beats(a, b):
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(
        x > y for x, y in zip(a, b, strict=True)
    )


def fast_non_dominated_sort(values):
    """Section III-A of the paper, with its lists and counters."""
    size = len(values)
    dominated = [[q for q in range(size) if beats(values[p], values[q])] for p in range(size)]
    counter = [sum(p in each for each in dominated) for p in range(size)]
    ranks, front, number = [-1] * size, [p for p in range(size) if counter[p] == 0], 0
    while front:
        after = []
        for p in front:
            ranks[p] = number
            for q in dominated[p]:
                counter[q] -= 1
                if counter[q] == 0:
                    after.append(q)
        front, number = after, number + 1
    return ranks


def crowding_distance_assignment(values, ranks):
    """Section III-B of the paper, front by front."""
    distance = np.zeros(len(values))
    for rank in set(ranks):
        for m in range(values.shape[1]):
            front = [i for i, r in enumerate(ranks) if r == rank]
            front.sort(key=lambda i: values[i, m])
            distance[front[0]] = distance[front[-1]] = np.inf
            extent = values[front[-1], m] - values[front[0], m] if len(front) > 2 else 0
            if np.isfinite(extent) and extent > 0:
                for before, i, after in zip(front, front[1:], front[2:], strict=False):
                    distance[i] += (values[after, m] - values[before, m]) / extent
    return distance
