"""Helpers of the tests that compare journals."""

from collections.abc import Sequence

from jaxnas.store import Row

MEASURED = ("seconds", "time")  # differ from run to run


def comparable(rows: Sequence[Row], measured: Sequence[str] = MEASURED) -> list[str]:
    """Rows as text that is equal where they are equal to the bit, measured values apart.

    Python's `repr` of a float determines its bits, and NaN equals itself. Metrics called
    `*_seconds` are measured, too.
    """
    texts = []
    for row in rows:
        values = {k: v for k, v in row._asdict().items() if k not in measured}
        metrics = {k: v for k, v in row.metrics.items() if not k.endswith("_seconds")}
        texts.append(repr(values | {"metrics": metrics}))
    return texts
