"""Deals candidates to calls, devices and slots, so that all devices finish together."""

from typing import NamedTuple

import numpy as np

from jaxnas.training.plan import Plan


class Slots(NamedTuple):
    """Where the candidates of one call sit."""

    rows: np.ndarray  # i64[G, C], the candidate in each slot; -1: none
    bounds: np.ndarray  # i32[G, b + 1]


def deal(bucket_ids, seconds, num_buckets: int, plan: Plan) -> list[Slots]:
    """Deals candidates to calls and devices: longest first, to the device with the least work."""
    order = np.argsort(-seconds, kind="stable")
    # Every call may lose up to one group per bucket and device to rounding.
    room = max(1, plan.chunk - num_buckets * (plan.group_size - 1)) * plan.num_devices
    num_calls = -(-len(order) // room)
    calls = []
    for call in range(num_calls):
        load = np.zeros(plan.num_devices)
        shares: list[list[int]] = [[] for _ in range(plan.num_devices)]
        for row in order[call::num_calls]:
            full = [len(share) * plan.num_devices >= room for share in shares]
            device = int(np.argmin(np.where(full, np.inf, load)))
            shares[device].append(int(row))
            load[device] += seconds[row]
        calls.append(_lay_out(shares, bucket_ids, num_buckets, plan))
    return calls


def _lay_out(shares, bucket_ids, num_buckets: int, plan: Plan) -> Slots:
    slots = plan.chunk + num_buckets * (plan.group_size - 1)
    slots = -(-slots // plan.group_size) * plan.group_size
    rows = np.full((plan.num_devices, slots), -1)
    bounds = np.zeros((plan.num_devices, num_buckets + 1), np.int32)
    for device, share in enumerate(shares):
        end = 0
        for bucket in range(num_buckets):
            mine = [row for row in share if bucket_ids[row] == bucket]
            rows[device, end : end + len(mine)] = mine
            end += -(-len(mine) // plan.group_size) * plan.group_size
            bounds[device, bucket + 1] = end // plan.group_size
    return Slots(rows, bounds)
