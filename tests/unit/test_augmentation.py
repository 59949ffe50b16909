"""Augmentations, one image at a time by hand, and their effect on training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas import counter
from jaxnas.training import Recipe
from jaxnas.training.augmentation import crop_and_flip, cutout, mixup, prepare
from jaxnas.training.data import Split, Task

SEED = counter.seed_from_key(jax.random.key(4))
IMAGES = jax.random.normal(jax.random.key(1), (300, 6, 5, 2)) + 10.0


def shifted(image, down, right):
    """`out[i, j] = image[i + down, j + right]`, 0 outside."""
    height, width, _ = image.shape
    out = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                out[i, j] = image[i + down, j + right]
    return out


def test_crops_are_shifts_and_flips_are_mirrors_all_equally_likely():
    images = np.asarray(IMAGES)
    found = np.asarray(jax.jit(crop_and_flip, static_argnums=(2, 3))(SEED, IMAGES, 1, True))
    steps = (-1, 0, 1)
    counts = {}
    for before, after in zip(images, found, strict=True):
        options = {
            (down, right, mirror): shifted(before, down, right)[:, :: -1 if mirror else 1]
            for down in steps
            for right in steps
            for mirror in (False, True)
        }
        (which,) = (name for name, option in options.items() if np.array_equal(option, after))
        counts[which] = counts.get(which, 0) + 1
    assert len(counts) == 18
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_without_flip_nothing_is_mirrored():
    found = crop_and_flip(SEED, IMAGES, 0, False)
    np.testing.assert_array_equal(found, IMAGES)


def test_cutout_blanks_one_square():
    size = 3
    found = np.asarray(cutout(SEED, IMAGES, size))
    blank = (found == 0.0).all(axis=-1)
    assert ((found == np.asarray(IMAGES)) | blank[..., None]).all()
    for hole in blank:
        rows, columns = np.nonzero(hole.any(axis=1))[0], np.nonzero(hole.any(axis=0))[0]
        assert hole.sum() == len(rows) * len(columns)
        for places, length in ((rows, 6), (columns, 5)):
            assert (np.diff(places) == 1).all()
            assert len(places) == size or places[0] == 0 or places[-1] == length - 1
    assert blank.any(axis=0).all()  # every pixel is hit some time


def test_mixup_averages_inputs_and_targets_alike():
    x, targets = IMAGES[:8], jnp.eye(8)
    mixed, soft = mixup(SEED, x, targets, 0.4)
    np.testing.assert_allclose(soft.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(jnp.einsum("nk,k...->n...", soft, x), mixed, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_weights_follow_the_beta_distribution(alpha):
    def weight(number):
        rows = jnp.asarray([[0.0], [1.0]])
        mixed = mixup(counter.fold(SEED, number), rows, rows, alpha)[0]
        return jnp.max(mixed)  # the weight or one minus it; 1.0 where a row meets itself

    found = np.asarray(jax.vmap(weight)(jnp.arange(4000)))
    found = found[found < 0.99]  # near 1 the table of quantiles is coarse
    folded = lambda w: stats.beta.cdf(w, alpha, alpha) - 0.5  # noqa: E731
    assert stats.kstest(found, lambda w: folded(w) / folded(0.99)).pvalue > 1e-3


def test_smoothing_and_regression_targets():
    batch = Split(jnp.ones((2, 3)), jnp.asarray([[1.0], [2.0]]))
    x, targets = prepare(Recipe(), Task("regression", 1), SEED, batch)
    np.testing.assert_array_equal(x, batch.x)
    np.testing.assert_array_equal(targets, batch.y)


def test_rows_that_are_no_images_are_refused():
    batch = Split(jnp.ones((2, 3)), jnp.asarray([0, 1]))
    with pytest.raises(ValueError, match="rows that are images"):
        prepare(Recipe(flip=True), Task("classification", 2), SEED, batch)


def test_smoothing_without_classes_is_refused():
    batch = Split(jnp.ones((2, 3)), jnp.asarray([[1.0], [2.0]]))
    with pytest.raises(ValueError, match="label_smoothing needs classes"):
        prepare(Recipe(label_smoothing=0.1), Task("regression", 1), SEED, batch)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("average", 1.0),
        ("crop", -1),
        ("cutout", 1.5),
        ("mixup", -0.1),
        ("label_smoothing", 1.0),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        Recipe(**{field: value})
