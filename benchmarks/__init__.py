"""Benchmarks: each module is a question; `python -m benchmarks.run NAME` measures the answer.

A benchmark module has

* `SETTINGS`: name to setting, a frozen dataclass of numbers and names;
* `add_arguments(parser)`: command-line options of its own;
* `load(setting)`: the problem, the same for every side that is measured;
* `measure(problem, options)`: raw measurements, a dict;
* `score(problem, raw, machine)`: title to rows of equal keys, the tables that answer the question.
"""
