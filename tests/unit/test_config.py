"""Settings of the command line."""

import dataclasses
import functools
import json

import pytest

from jaxnas import config, datasets, strategies
from jaxnas.config import Settings, parse_options
from jaxnas.training.data import Task

BASE = {"space": "mlp", "strategies": ("genetic",), "data": "wine", "num_evaluations": 8}


def test_settings_survive_json():
    settings = Settings(
        **BASE,
        baseline=None,
        proxies=("snip",),
        latency=4,
        options=parse_options(["space.widths=[8]", "recipe.learning_rate=0.1"]),
        command="jaxnas search",
    )
    assert Settings(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("space.depths=[1, 2]", [1, 2]),
        ("space.depths=0.5", 0.5),
        ("space.depths=null", None),
        ("space.depths=true", True),
        ("space.depths=one_point", "one_point"),
        ("space.depths=a=b", "a=b"),
    ],
)
def test_option_values_are_json_or_text(text, value):
    assert parse_options([text]) == {"space": {"depths": value}}


@pytest.mark.parametrize("text", ["widths=[8]", "space.widths", "space.=3", "=", ""])
def test_an_option_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match=r"an option looks like recipe\.learning_rate=0\.01"):
        parse_options([text])


def test_an_option_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"option space\.widths is given twice"):
        parse_options(["space.widths=[8]", "space.widths=[16]"])


def test_the_baseline_is_searched_once():
    assert Settings(**BASE).searched == ("genetic", "random_search")
    assert Settings(**BASE, baseline=None).searched == ("genetic",)
    both = Settings(**BASE | {"strategies": ("random_search", "genetic")})
    assert both.searched == ("random_search", "genetic")


def test_the_winner_has_a_recipe_of_its_own():
    options = {"recipe": {"learning_rate": 0.1}, "retrain": {"schedule": "cosine"}}
    settings = Settings(**BASE, epochs=3, retrain_epochs=9, options=options)
    candidate = settings.recipe
    winner = settings.retrain_recipe(Task("regression", 1))
    assert (candidate.epochs, candidate.schedule, candidate.learning_rate) == (3, "constant", 0.1)
    assert (winner.epochs, winner.schedule, winner.learning_rate) == (9, "cosine", 0.1)
    assert winner.label_smoothing == 0.0  # which classes alone can have
    assert settings.retrain_recipe(Task("classification", 3)).label_smoothing == 0.1


def test_strategy_options_go_to_those_that_have_them(monkeypatch):
    asked = {}

    def spy(name):
        @functools.wraps(strategies.ALL[name])  # the options are read off the signature
        def factory(space, **options):
            asked[name] = options
            return strategies.random_search(space)

        return factory

    monkeypatch.setattr(strategies, "ALL", {name: spy(name) for name in strategies.ALL})
    options = {"strategy": {"population_size": 8, "num_elites": 2}}
    made = config.build(Settings(**BASE, batch_size=4, options=options))
    assert set(made.strategies) == {"genetic", "random_search"}
    assert asked == {
        "genetic": {"batch_size": 4, "population_size": 8, "num_elites": 2},
        "random_search": {"batch_size": 4},
    }


def test_the_split_does_not_depend_on_the_number_of_seeds():
    one, many = (config.build(Settings(**BASE, num_seeds=n)).data for n in (1, 5))
    other = config.build(Settings(**BASE, seed=1)).data
    assert (one.train.x == many.train.x).all()
    assert (one.train.x != other.train.x).any()


BAD = [
    ({"space": "cnn"}, "unknown space 'cnn'; known are chain_cnn, darts, mlp"),
    ({"strategies": ("genetic", "luck")}, "unknown strategy 'luck'; known are asha, "),
    ({"strategies": ()}, "give at least one strategy or one-shot method"),
    ({"baseline": "luck"}, "unknown strategy 'luck'"),
    ({"num_evaluations": 0}, "num_evaluations must be at least 1, got 0"),
    ({"num_evaluations": None}, "either num_evaluations or seconds"),
    ({"num_evaluations": None, "seconds": -1.0}, "seconds must be positive and finite, got -1.0"),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ({"num_seeds": 0}, "num_seeds must be a whole number of at least 1, got 0"),
    ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
    ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ({"latency": 2}, "latency must be a whole number of at least 3, got 2"),
    ({"latency": -1}, "latency must be a whole number of at least 3, got -1"),
    ({"proxies": ("snip", "luck")}, "proxies must be different names in"),
    ({"proxies": ("snip", "snip")}, "proxies must be different names in"),
    ({"devices": 0}, "devices must be a whole number of at least 1, got 0"),
    ({"options": {"space": {"width": [8]}}}, r"unknown option space\.width; allowed are .*widths"),
    ({"options": {"strategy": {"policy": "x"}}}, r"unknown option strategy\.policy; allowed are"),
    ({"options": {"recipe": {"epochs": 3}}}, r"unknown option recipe\.epochs; allowed are"),
    ({"options": {"data": {"images": True}}}, r"unknown option data\.images; allowed are"),
    ({"options": {"sapce": {"widths": [8]}}}, "options begin with one of space, strategy"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_settings_are_refused_before_anything_is_loaded(monkeypatch, changes, message):
    def load(*args, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(datasets, "load", load)
    with pytest.raises(ValueError, match=message):
        Settings(**BASE | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"space": {"widths": []}}}, "widths is empty"),
        ({"options": {"space": {"widths": 8}}}, "an option of space has the wrong type"),
        ({"options": {"strategy": {"population_size": 4}}}, "population_size"),
        ({"options": {"recipe": {"schedule": "odd"}}}, "schedule must be"),
        ({"options": {"recipe": {"batch_size": 1000}}}, "larger than the .* training rows"),
        ({"options": {"retrain": {"learning_rate": 0}}}, "learning_rate must be above 0"),
        ({"options": {"data": {"test_fraction": 2.0}}}, "test_fraction"),
        ({"proxies": ("zen",)}, "zen|features|probe"),
        ({"data": "nowhere"}, "'nowhere' is neither a bundled data set"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config.build(Settings(**BASE | changes))


def test_image_spaces_take_their_shape_from_the_data():
    settings = config.Settings(
        space="nasbench201",
        strategies=("random_search",),
        data="digits",
        num_evaluations=8,
        batch_size=4,
        options={"data": {"images": True}, "space": {"num_cells": 1, "num_channels": 4}},
    )
    made = config.build(settings)
    assert made.space.network([0] * 6).image_shape == (8, 8, 1)


def test_image_spaces_refuse_rows_that_are_no_images():
    settings = config.Settings(
        space="nasbench201",
        strategies=("random_search",),
        data="wine",
        num_evaluations=8,
        batch_size=4,
    )
    with pytest.raises(ValueError, match="needs square images"):
        config.build(settings)
