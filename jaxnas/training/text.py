"""Text as language models want it: symbols as numbers, split in three, cut into windows.

Host-side NumPy work that ends in JAX arrays. A symbol is a character or a word.

In the shape descriptions, `N` denotes the symbols of one part, `B` streams that are read side by
side, `T` symbols of a window and `W` windows of each stream.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from jaxnas._checks import check_count, check_option
from jaxnas.training.data import Split

LEVELS = ("character", "word")
UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"


@dataclass(frozen=True, eq=False)
class Text:
    """A text in three parts that follow one another.

    Compared and hashed by identity.

    Attributes:
      name: for reports and journals.
      level: "character" or "word", what a symbol is.
      symbols: the symbol that each number stands for.
      train: i32[N], what weights are fitted to.
      valid: i32[N], what architectures are chosen by.
      test: i32[N], what only the final network sees.
    """

    name: str
    level: str
    symbols: tuple[str, ...]
    train: Array
    valid: Array
    test: Array

    @property
    def num_symbols(self) -> int:
        """Different symbols."""
        return len(self.symbols)

    def decode(self, tokens: ArrayLike) -> str:
        """The text that `tokens` i32[...] stand for; words are separated by spaces."""
        found = [self.symbols[int(token)] for token in np.ravel(np.asarray(tokens))]
        return ("" if self.level == "character" else " ").join(found)


def from_string(
    text: str,
    *,
    level: str = "character",
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    max_symbols: int | None = None,
    name: str = "text",
) -> Text:
    """Splits one text in three: the training part comes first, the test part last.

    Args:
      text: the text.
      level: "character"; or "word", where words are what white space separates and the end of a
        line is a word of its own, `<eos>`, as in the usual preparation of the Penn Treebank.
      valid_fraction: share of the symbols for validation, in (0, 1).
      test_fraction: share for the test, in (0, 1); the sum is below 1.
      max_symbols: as many of the training part's most frequent symbols are told apart, at least 1;
        all others become one more, `<unk>`. None: all symbols of all parts are told apart.
      name: for reports.

    Returns:
      The text.

    Raises:
      ValueError: for another `level`, fractions out of range, or a part without symbols.

    Example:
      >>> text = from_string("abracadabra", valid_fraction=0.2, test_fraction=0.2)
      >>> text.symbols, text.train.tolist(), text.decode(text.test)
      (('a', 'b', 'c', 'd', 'r'), [0, 1, 4, 0, 2, 0, 3], 'ra')
    """
    check_option("level", level, LEVELS)
    fractions = (valid_fraction, test_fraction)
    if min(fractions) <= 0.0 or sum(fractions) >= 1.0:
        raise ValueError(
            "valid_fraction and test_fraction must be above 0 with a sum below 1, "
            f"got {valid_fraction} and {test_fraction}"
        )
    found = _tokenised(text, level)
    num_valid, num_test = (math.floor(fraction * len(found)) for fraction in fractions)
    last = len(found) - num_test
    parts = found[: last - num_valid], found[last - num_valid : last], found[last:]
    return _numbered(name, level, parts, max_symbols)


def from_strings(
    train: str,
    valid: str,
    test: str,
    *,
    level: str = "character",
    max_symbols: int | None = None,
    name: str = "text",
) -> Text:
    """Three texts that were split beforehand, see `from_string`.

    Example:
      >>> from_strings("to be or", "not to", "be", level="word", max_symbols=2).valid.tolist()
      [2, 2, 0]
    """
    check_option("level", level, LEVELS)
    parts = [_tokenised(part, level) for part in (train, valid, test)]
    return _numbered(name, level, parts, max_symbols)


def _tokenised(text: str, level: str) -> list[str]:
    if level == "character":
        return list(text)
    return [word for line in text.splitlines() for word in (*line.split(), END_OF_LINE)]


def _numbered(
    name: str, level: str, parts: Sequence[Sequence[str]], max_symbols: int | None
) -> Text:
    for which, part in zip(("train", "valid", "test"), parts, strict=True):
        if not part:
            raise ValueError(f"the {which} part of {name!r} must have symbols, got none")
    symbols = sorted(set().union(*parts)) if max_symbols is None else _frequent(parts, max_symbols)
    number = {symbol: i for i, symbol in enumerate(symbols)}
    unknown = number.get(UNKNOWN, 0)  # without the symbol, everything has a number of its own

    def encode(part: Iterable[str]) -> Array:
        return jnp.asarray([number.get(symbol, unknown) for symbol in part], jnp.int32)

    train, valid, test = map(encode, parts)
    return Text(name, level, tuple(symbols), train, valid, test)


def _frequent(parts: Sequence[Sequence[str]], max_symbols: int) -> list[str]:
    check_count("max_symbols", max_symbols)
    counts = Counter(parts[0])
    counts.pop(UNKNOWN, None)
    # Ties by spelling, so that the numbers depend on the text alone.
    ranked = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
    return [*sorted(ranked[:max_symbols]), UNKNOWN]


def batchify(tokens: Array, batch_size: int) -> Array:
    """Cuts a part into streams of equal length, to be read side by side.

    Args:
      tokens: i32[N].
      batch_size: B, streams. Static.

    Returns:
      i32[B, N // B]; what does not fill the last column is left out.

    Raises:
      ValueError: if a stream would have fewer than two symbols.

    Example:
      >>> batchify(jnp.arange(7), 2).tolist()
      [[0, 1, 2], [3, 4, 5]]
    """
    check_count("batch_size", batch_size)
    length = len(tokens) // batch_size
    if length < 2:
        raise ValueError(
            f"batch_size must be at most half of the {len(tokens)} symbols, got {batch_size}"
        )
    return tokens[: batch_size * length].reshape(batch_size, length)


def windows(tokens: Array, batch_size: int, num_steps: int) -> Split:
    """Cuts a part into windows and the symbols that follow, in the order in which to train on them.

    Row `i * B + b` is window i of stream b, so it goes on where row `b` of the batch before ended,
    and batches of B rows in order are what a network that keeps its state has to be given.

    Args:
      tokens: i32[N].
      batch_size: B, streams. Static.
      num_steps: T, symbols of a window (`bptt`). Static.

    Returns:
      `x` i32[W * B, T] and, one symbol later each, `y` i32[W * B, T]; W = (N // B - 1) // T, and
      what does not fill a window is left out.

    Raises:
      ValueError: if there is not one window.

    Example:
      >>> x, y = windows(jnp.arange(10), batch_size=2, num_steps=2)
      >>> x.tolist(), y.tolist()
      ([[0, 1], [5, 6], [2, 3], [7, 8]], [[1, 2], [6, 7], [3, 4], [8, 9]])
    """
    check_count("num_steps", num_steps)
    streams = batchify(tokens, batch_size)
    count = (streams.shape[1] - 1) // num_steps
    if count < 1:
        raise ValueError(
            f"num_steps must be below the {streams.shape[1]} symbols of a stream, got {num_steps}"
        )

    def cut(first: int) -> Array:
        used = streams[:, first : first + count * num_steps]
        return used.reshape(batch_size, count, num_steps).swapaxes(0, 1).reshape(-1, num_steps)

    return Split(cut(0), cut(1))


def bits(loss: ArrayLike) -> Array:
    """Bits per symbol of a mean loss in nats: f32[...].

    Example:
      >>> round(bits(math.log(8)).item(), 5)
      3.0
    """
    return jnp.asarray(loss) / np.float32(math.log(2.0))


def perplexity(loss: ArrayLike) -> Array:
    """Perplexity per symbol of a mean loss in nats: f32[...].

    Example:
      >>> round(perplexity(math.log(8)).item(), 4)
      8.0
    """
    return jnp.exp(jnp.asarray(loss))
