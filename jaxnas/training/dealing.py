"""Deals candidates to calls, devices and slots, so that all devices finish together."""

from typing import NamedTuple

import numpy as np


class Slots(NamedTuple):
    """Where the candidates of one call sit."""

    rows: np.ndarray  # i64[G, C], the candidate in each slot; -1: none
    bounds: np.ndarray  # i32[G, b + 1]


class Layout(NamedTuple):
    """The shape of a call."""

    num_shards: int  # G, shares of the candidates
    num_slots: int  # C, slots of a share, a multiple of group_size
    group_size: int  # candidates per step
    num_buckets: int  # b


def deal(bucket_ids: np.ndarray, seconds: np.ndarray, layout: Layout) -> list[Slots]:
    """Deals candidates to calls and shares: longest first, to the share with the least work.

    Args:
      bucket_ids: i[P], in 0 to b - 1; -1: not dealt.
      seconds: f[P], predicted work.
      layout: of every call.
    """
    order = np.argsort(-seconds, kind="stable")
    order = order[bucket_ids[order] >= 0]
    # A share may lose up to a group less one per bucket to rounding.
    each = max(1, layout.num_slots - layout.num_buckets * (layout.group_size - 1))
    num_calls = -(-len(order) // (each * layout.num_shards))
    calls = []
    for call in range(num_calls):
        load = np.zeros(layout.num_shards)
        shares: list[list[int]] = [[] for _ in range(layout.num_shards)]
        for row in order[call::num_calls]:
            share = int(np.argmin(load))
            shares[share].append(int(row))
            load[share] += seconds[row]
            if len(shares[share]) >= each:
                load[share] = np.inf
        calls.append(_lay_out(shares, bucket_ids, layout))
    return calls


def _lay_out(shares: list[list[int]], bucket_ids: np.ndarray, layout: Layout) -> Slots:
    size = layout.group_size
    rows = np.full((layout.num_shards, layout.num_slots), -1)
    bounds = np.zeros((layout.num_shards, layout.num_buckets + 1), np.int32)
    for device, share in enumerate(shares):
        end = 0
        own = bucket_ids[np.asarray(share, int)]
        for bucket in range(layout.num_buckets):
            mine = np.asarray(share, int)[own == bucket]
            rows[device, end : end + len(mine)] = mine
            end += -(-len(mine) // size) * size
            bounds[device, bucket + 1] = end // size
    return Slots(rows, bounds)
