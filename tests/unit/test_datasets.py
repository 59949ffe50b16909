import io
import os
import pickle
import struct
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from jaxnas import datasets
from jaxnas.training.data import Task

KEY = jax.random.key(0)
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def num_rows(data):
    return [len(split.x) for split in (data.train, data.valid, data.test)]


# Bundled


@pytest.mark.parametrize(
    ("name", "rows", "features", "task"),
    [
        ("digits", 1797, 64, Task("classification", 10)),
        ("diabetes", 442, 10, Task("regression", 1)),
        ("breast_cancer", 569, 30, Task("classification", 2)),
        ("wine", 178, 13, Task("classification", 3)),
    ],
)
def test_bundled_data_sets(name, rows, features, task):
    data = datasets.load(name, KEY, valid_fraction=0.1, test_fraction=0.3)
    assert (data.name, data.task, sum(num_rows(data))) == (name, task, rows)
    np.testing.assert_allclose(num_rows(data), np.array([0.6, 0.1, 0.3]) * rows, atol=1)
    assert data.train.x.shape[1:] == (features,)
    assert abs(float(data.train.x.mean())) < 1e-6


def test_all_names_its_loaders():
    assert {name: loader.__name__ for name, loader in datasets.ALL.items()} == {
        name: name for name in ("digits", "diabetes", "breast_cancer", "wine")
    }


def test_digits_as_images_are_the_flat_rows_in_the_unit_range():
    images = datasets.digits(KEY, images=True, standardise=False)
    flat = datasets.digits(KEY, standardise=False)
    assert images.test.x.shape[1:] == (8, 8, 1)
    np.testing.assert_array_equal(images.test.x.reshape(-1, 64), flat.test.x)
    assert images.train.x.min() == 0.0 and images.train.x.max() == 1.0


def test_diabetes_is_raw_so_that_no_mean_of_test_rows_leaks_in():
    data = datasets.diabetes(KEY, standardise=False)
    assert data.train.x[:, 0].min() >= 18.0  # ages in years
    assert set(np.unique(data.train.x[:, 1])) == {1.0, 2.0}


# NumPy archives


def save_npz(folder, **arrays):
    np.savez(folder / "table.npz", **arrays)
    return folder / "table.npz"


def pair(num_rows, suffix="", start=0):
    x = np.column_stack([start + np.arange(num_rows), np.ones(num_rows)])
    return {f"x{suffix}": x, f"y{suffix}": np.arange(num_rows) % 2}


def test_npz_draws_the_parts_that_are_missing(tmp_path):
    path = save_npz(tmp_path, **pair(20), feature_names=np.array(["a", "b"]))
    data = datasets.load(str(path), KEY, standardise=False)
    assert (data.name, data.task) == ("table", Task("classification", 2))
    assert num_rows(data) == [12, 4, 4]

    path = save_npz(tmp_path, **pair(20), **pair(6, "_test", start=100))
    data = datasets.npz(path, KEY, valid_fraction=0.1, standardise=False)
    assert num_rows(data) == [18, 2, 6]
    np.testing.assert_array_equal(data.test.x[:, 0], 100 + np.arange(6))
    drawn = np.concatenate([data.train.x[:, 0], data.valid.x[:, 0]])
    assert sorted(drawn.tolist()) == list(range(20))

    path = save_npz(tmp_path, **pair(20), **pair(6, "_valid", start=100))
    data = datasets.npz(path, KEY, test_fraction=0.5, standardise=False)
    assert num_rows(data) == [10, 6, 10]
    np.testing.assert_array_equal(data.valid.x[:, 0], 100 + np.arange(6))


def test_npz_takes_all_three_parts_and_the_task(tmp_path):
    path = save_npz(tmp_path, **pair(8), **pair(4, "_valid"), **pair(6, "_test"))
    assert num_rows(datasets.npz(path, KEY)) == [8, 4, 6]
    assert datasets.npz(path, KEY, task="regression").task == Task("regression", 1)


def test_npz_knows_float_labels_by_the_number_of_classes(tmp_path):
    arrays = {**pair(20), **pair(6, "_test")}
    arrays |= {name: arrays[name].astype(float) for name in ("y", "y_test")}
    data = datasets.npz(save_npz(tmp_path, **arrays), KEY, num_classes=2)
    assert np.bincount(data.valid.y).tolist() == [2, 2]


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.ones((9, 2))},
        {"features": np.ones((9, 2)), "labels": np.ones(9)},
        {**pair(9), "x_valid": np.ones((9, 2))},
        {**pair(9), "y_test": np.ones(9)},
        {**pair(9), **pair(9, "_val")},
    ],
)
def test_npz_lists_the_arrays_where_they_do_not_fit(tmp_path, arrays):
    with pytest.raises(ValueError, match="it must have x and y") as error:
        datasets.npz(save_npz(tmp_path, **arrays), KEY)
    assert str(sorted(arrays)) in str(error.value)


def test_npz_refuses_what_is_not_an_archive_of_plain_arrays(tmp_path):
    path = save_npz(tmp_path, x=np.array([{}, []], object), y=np.ones(2))
    with pytest.raises(ValueError, match=r"table.npz is not an .npz archive of plain arrays"):
        datasets.npz(path, KEY)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"not an \.npz archive"):
        datasets.npz(path, KEY)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match=r"not an \.npz archive"):
        datasets.npz(path, KEY)
    with pytest.raises(FileNotFoundError):
        datasets.npz(tmp_path / "other.npz", KEY)


# CIFAR-10


def python2_pickle(pixels, labels):
    """The bytes that Python 2's cPickle wrote for `{"data": u8[N, 3072], "labels": [...]}`."""

    def string(value):  # SHORT_BINSTRING or BINSTRING, which Python 3 no longer writes
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + (
            value
        )

    def number(value):
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b")
    array += b"\x87R(K\x01" + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86" + dtype
    array += b"\x89" + string(pixels.tobytes()) + b"tb"
    items = string(b"data") + array + string(b"labels") + b"](" + b"".join(map(number, labels))
    return b"\x80\x02}(" + items + b"eu."


def cifar_batch(number, num_rows=8):
    """Black images of which pixel (2, 5) is `number` in red, 100 in green and the row in blue."""
    pixels = np.zeros((num_rows, 3, 32, 32), np.uint8)
    pixels[:, 0, 2, 5], pixels[:, 1, 2, 5], pixels[:, 2, 2, 5] = number, 100, np.arange(num_rows)
    return pixels.reshape(num_rows, 3072), [row % 4 for row in range(num_rows)]


def cifar_folder(parent):
    folder = parent / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate(BATCHES):
        (folder / name).write_bytes(python2_pickle(*cifar_batch(number)))
    (folder / "readme.html").write_text("nothing to read")
    return folder


def cifar_archive(parent):
    folder = cifar_folder(parent)
    with tarfile.open(parent / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    return parent / "cifar-10-python.tar.gz"


def test_the_handwritten_pickle_is_what_python_2_wrote():
    pixels, labels = cifar_batch(3)
    batch = pickle.loads(python2_pickle(pixels, labels), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], pixels)
    assert batch[b"labels"] == labels


@pytest.mark.parametrize("make", [cifar_folder, cifar_archive])
def test_cifar10_from_a_folder_and_an_archive(tmp_path, make):
    data = datasets.load(str(make(tmp_path)), KEY, standardise=False)
    assert (data.name, data.task) == ("cifar10", Task("classification", 10))
    assert num_rows(data) == [36, 4, 8]
    assert data.test.x.shape == (8, 32, 32, 3)
    np.testing.assert_allclose(data.test.x[3, 2, 5] * 255, [5, 100, 3], rtol=1e-6)
    assert float(data.test.x[3].sum()) == pytest.approx(108 / 255)  # and nowhere else
    np.testing.assert_array_equal(data.test.y, np.arange(8) % 4)
    reds = np.concatenate([data.train.x[:, 2, 5, 0], data.valid.x[:, 2, 5, 0]]) * 255
    assert np.bincount(np.rint(reds).astype(int)).tolist() == [8] * 5


def test_cifar10_from_the_folder_around(tmp_path):
    cifar_folder(tmp_path)
    data = datasets.load(str(tmp_path), KEY, valid_fraction=0.5)
    assert num_rows(data) == [20, 20, 8]


def test_cifar10_reads_arrays_that_lie_in_column_order(tmp_path):
    pixels, labels = cifar_batch(0)
    content = pickle.dumps({b"data": np.asfortranarray(pixels), b"labels": labels}, protocol=3)
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")  # NumPy 1's name
    folder = cifar_folder(tmp_path)
    (folder / "test_batch").write_bytes(content)
    data = datasets.cifar10(folder, KEY, standardise=False)
    np.testing.assert_allclose(data.test.x[3, 2, 5] * 255, [0, 100, 3], rtol=1e-6)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_cifar10_runs_nothing_that_a_batch_asks_for(tmp_path):
    folder, trace = cifar_folder(tmp_path), tmp_path / "trace"
    content = pickle.dumps({b"data": Harmful(str(trace)), b"labels": []}, protocol=3)
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_2 is not a CIFAR-10 batch: .*mkdir"):
        datasets.cifar10(folder, KEY)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists()  # the batch would have done it


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": 1, b"labels": [1]}),
        python2_pickle(*cifar_batch(0))[:-3000],
        python2_pickle(np.zeros((8, 3071), np.uint8), [0] * 8),
    ],
)
def test_cifar10_names_a_damaged_batch(tmp_path, content):
    folder = cifar_folder(tmp_path)
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match="test_batch is not a CIFAR-10 batch"):
        datasets.cifar10(folder, KEY)


def test_cifar10_names_what_is_missing_or_damaged(tmp_path):
    archive = cifar_archive(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(ValueError, match=r"lacks the CIFAR-10 batches \['data_batch_3'\]"):
        datasets.cifar10(tmp_path, KEY)
    whole = archive.read_bytes()
    for broken in (b"hello", whole[: len(whole) // 2]):
        archive.write_bytes(broken)
        with pytest.raises(ValueError, match=r"python.tar.gz is not a .tar.gz archive"):
            datasets.cifar10(archive, KEY)
    with pytest.raises(FileNotFoundError):
        datasets.cifar10(tmp_path / "nothing.tar.gz", KEY)


# Image folders


def save_images(folder, num_images, colour, size=(6, 4), suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num_images):
        Image.new("RGB", size, colour).save(folder / f"{index}.{suffix}")


def class_folders(folder, num_images=5):
    save_images(folder / "red", num_images, (255, 0, 0))
    save_images(folder / "blue", num_images, (0, 0, 255))
    (folder / "red" / "notes.txt").write_text("not an image")
    (folder / ".hidden").mkdir()
    return folder


def test_image_folder_has_a_class_per_folder(tmp_path):
    data = datasets.load(str(class_folders(tmp_path / "photos")), KEY, standardise=False)
    assert (data.name, data.task) == ("photos", Task("classification", 2))
    assert data.classes == ("blue", "red")
    assert num_rows(data) == [6, 2, 2]
    assert data.train.x.shape[1:] == (4, 6, 3)  # Pillow's sizes are width first
    for image, label in zip(data.train.x, data.train.y, strict=True):
        np.testing.assert_array_equal(image[0, 0], [[0, 0, 1], [1, 0, 0]][int(label)])


@pytest.mark.parametrize("valid_name", ["valid", "val"])
def test_image_folder_takes_parts_that_have_folders(tmp_path, valid_name):
    for name, count in (("train", 4), (valid_name, 3), ("test", 2)):
        class_folders(tmp_path / name, count)
    (tmp_path / "unlabelled").mkdir()
    data = datasets.image_folder(tmp_path, KEY)
    assert num_rows(data) == [8, 6, 4]
    assert data.classes == ("blue", "red")


def test_image_folder_draws_the_parts_that_have_none(tmp_path):
    class_folders(tmp_path / "train", 8)
    class_folders(tmp_path / "test", 2)
    assert num_rows(datasets.image_folder(tmp_path, KEY, valid_fraction=0.25)) == [12, 4, 4]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "plane", "test"):
        save_images(tmp_path / name, 3, (9, 9, 9))
    assert datasets.image_folder(tmp_path, KEY).classes == ("plane", "test", "train")


@pytest.mark.parametrize(("size", "shape"), [(3, (3, 3)), ((5, 2), (5, 2))])
def test_image_folder_resizes_and_converts(tmp_path, size, shape):
    save_images(tmp_path / "small", 3, (255, 255, 255))
    save_images(tmp_path / "large", 3, (0, 0, 0), size=(40, 30), suffix="JPG")
    data = datasets.image_folder(tmp_path, KEY, size=size, channels=1, standardise=False)
    assert data.train.x.shape[1:] == (*shape, 1)
    assert data.train.x.min() == 0.0 and data.train.x.max() == 1.0
    with pytest.raises(ValueError, match=r"small/0.png has shape \(4, 6, 3\) .* give size"):
        datasets.image_folder(tmp_path, KEY)


def test_image_folder_names_what_it_cannot_read(tmp_path):
    class_folders(tmp_path)
    deep = Image.fromarray(np.full((4, 6), 40_000, np.uint16))
    deep.save(tmp_path / "red" / "0.png")
    with pytest.raises(ValueError, match=r"red/0\.png must have 8 bits per channel, got mode I;16"):
        datasets.image_folder(tmp_path, KEY)
    for content in (b"hello", whole_png()[:40], whole_png()[:-30]):
        (tmp_path / "red" / "0.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"red/0\.png is not a readable image"):
            datasets.image_folder(tmp_path, KEY)
    for file in (tmp_path / "red").glob("*.png"):
        file.unlink()
    with pytest.raises(ValueError, match=r"red has no images \(.png, .jpg, .jpeg\)"):
        datasets.image_folder(tmp_path, KEY)
    with pytest.raises(ValueError, match="no folders with the images of a class"):
        datasets.image_folder(tmp_path / "red", KEY)
    with pytest.raises(FileNotFoundError):
        datasets.image_folder(tmp_path / "nothing", KEY)


def whole_png():
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be one or two numbers of at least 1, got 0"),
        ({"size": (4, 4, 3)}, "size must be one or two numbers"),
        ({"channels": 4}, "channels must be 1 or 3, got 4"),
    ],
)
def test_image_folder_checks_its_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        datasets.image_folder(tmp_path, KEY, **options)


# By name or path


@pytest.mark.parametrize("spec", ["mnist", "missing.npz", "missing.tar.gz", ""])
def test_load_lists_what_it_knows(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    spec = spec or str(tmp_path / "file.csv")
    (tmp_path / "file.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"digits, diabetes, breast_cancer, wine.*\.npz.*CIFAR-10"):
        datasets.load(spec, KEY)


def test_load_prefers_names_to_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "wine")
    assert datasets.load("wine", KEY).task.num_outputs == 3
    assert datasets.load("./wine", KEY).classes == ("blue", "red")
