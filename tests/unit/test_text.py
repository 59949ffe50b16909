"""Texts as numbers, and their windows."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import datasets
from jaxnas.training.text import (
    batchify,
    bits,
    from_string,
    from_strings,
    perplexity,
    windows,
)

DATA = Path(os.environ.get("JAXNAS_DATA", Path(__file__).parents[3] / "shared" / "data"))

POEM = "so much depends\nupon\n\na red wheel\nbarrow\n"


def test_characters_come_back_and_parts_follow_one_another():
    text = from_string(POEM, valid_fraction=0.2, test_fraction=0.3)
    parts = [text.decode(part) for part in (text.train, text.valid, text.test)]
    assert "".join(parts) == POEM
    assert [len(part) for part in parts] == [len(POEM) - 8 - 12, 8, 12]
    assert text.symbols == tuple(sorted(set(POEM)))
    assert text.train.dtype == jnp.int32


def test_words_end_lines():
    text = from_string(POEM, level="word", valid_fraction=0.25, test_fraction=0.25)
    words = " ".join(text.decode(part) for part in (text.train, text.valid, text.test))
    expected = "so much depends <eos> upon <eos> <eos> a red wheel <eos> barrow <eos>"
    assert words == expected
    assert text.num_symbols == 9


def test_rare_symbols_of_the_training_part_are_unknown():
    text = from_strings("a a a b b c <unk>", "a c d", "b e", level="word", max_symbols=3)
    assert text.symbols == ("<eos>", "a", "b", "<unk>")
    assert text.decode(text.train) == "a a a b b <unk> <unk> <eos>"
    assert text.decode(text.valid) == "a <unk> <unk> <eos>"
    assert text.test.tolist() == [2, 3, 0]


def test_windows_follow_one_another_stream_by_stream():
    tokens = jnp.arange(100) * 3
    x, y = windows(tokens, batch_size=4, num_steps=5)
    assert x.shape == y.shape == (4 * 4, 5)  # (25 - 1) // 5 windows of 4 streams
    streams = batchify(tokens, 4)
    for b in range(4):
        np.testing.assert_array_equal(x[b::4].ravel(), streams[b, :20])
        np.testing.assert_array_equal(y[b::4].ravel(), streams[b, 1:21])


def test_metrics():
    assert bits(np.log(65.0)) == pytest.approx(np.log2(65.0))
    assert perplexity(jnp.log(jnp.array([2.0, 65.0]))).tolist() == pytest.approx([2.0, 65.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_string("abc", level="syllable"), "level must be one of"),
        (lambda: from_string("abc", valid_fraction=0.0), "valid_fraction and test_fraction"),
        (lambda: from_string("abc" * 9, valid_fraction=0.6, test_fraction=0.4), "below 1"),
        (lambda: from_string("abc"), "the valid part of 'text' must have symbols"),
        (lambda: from_string("abc" * 9, max_symbols=0), "max_symbols must be an integer"),
        (lambda: batchify(jnp.arange(7), 4), "at most half of the 7 symbols, got 4"),
        (lambda: windows(jnp.arange(8), 2, 4), "below the 4 symbols of a stream, got 4"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_files(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text(POEM, encoding="utf-8")
    text = datasets.text_file(path, valid_fraction=0.2, test_fraction=0.2)
    assert (text.name, text.level) == ("poem", "character")
    with pytest.raises(FileNotFoundError):
        datasets.text_file(tmp_path / "novel.txt")


def test_tiny_shakespeare():
    path = DATA / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    text = datasets.text_file(path)
    assert text.num_symbols == 65
    assert len(text.train) + len(text.valid) + len(text.test) == 1_115_394
    assert text.decode(text.train[:14]) == "First Citizen:"
