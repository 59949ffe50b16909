"""The measured cost model, and the file that keeps it."""

import json

import pytest

from jaxnas.training import CostModel, calibration


@pytest.fixture(scope="module")
def measured():
    return calibration.calibrate()


def test_measured_constants_are_those_of_a_computer(measured):
    for name, seconds in measured._asdict().items():
        default = getattr(CostModel(), name)
        assert 1e-3 * default < seconds < 1e3 * default, name


@pytest.fixture
def counted(monkeypatch):
    """Stands in for the measurement, and gives another result each time."""
    calls = []

    def calibrate():
        calls.append(1)
        return CostModel(step=float(len(calls)))

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    return calls


def test_is_measured_once(tmp_path, counted):
    first = calibration.calibrated(tmp_path / "new")
    assert calibration.calibrated(tmp_path / "new") == first == CostModel(step=1.0)
    (file,) = (tmp_path / "new").iterdir()
    assert json.loads(file.read_text())["num_cores"] >= 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"seconds": {"step": "x"}}'])
def test_a_damaged_file_is_replaced(tmp_path, counted, text):
    calibration.calibrated(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert calibration.calibrated(tmp_path) == CostModel(step=2.0)
    assert calibration.calibrated(tmp_path) == CostModel(step=2.0)


def test_the_first_of_two_that_measure_at_once_counts(tmp_path, monkeypatch):
    fast = CostModel(step=1.0)

    def slow():
        monkeypatch.setattr(calibration, "calibrate", lambda: fast)
        calibration.calibrated(tmp_path)
        return CostModel(step=2.0)

    monkeypatch.setattr(calibration, "calibrate", slow)
    assert calibration.calibrated(tmp_path) == fast


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path, counted):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert calibration.calibrated(blocked / "folder") == CostModel(step=1.0)


def test_another_device_has_another_file(tmp_path, counted, monkeypatch):
    calibration.calibrated(tmp_path)
    described = calibration.device_description()
    monkeypatch.setattr(calibration, "device_description", lambda: {**described, "num_cores": 99})
    assert calibration.calibrated(tmp_path) == CostModel(step=2.0)
    assert len(list(tmp_path.iterdir())) == 2
