"""Training of language models, and their problem for one-shot methods."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas.nn.language_model import HIDDEN, LSTM, Dropout
from jaxnas.spaces import nasbench201, recurrent
from jaxnas.training import language_model
from jaxnas.training.data import Split
from jaxnas.training.recipe import Recipe
from jaxnas.training.text import from_string, windows

# The next letter follows from the last two, so a state is worth having. Four streams of 61 letters
# are at different places of the pattern.
TEXT = from_string("aabb" * 101, valid_fraction=0.2, test_fraction=0.2)
RECIPE = Recipe(epochs=8, batch_size=4, learning_rate=0.05, clip_norm=1.0, curves=True)


def cell(**options):
    return recurrent(2, num_units=8, num_nodes=2, **options)


def trainer(module, recipe=RECIPE):
    def run(key, choice=None):
        return language_model.train(key, module, TEXT, choice, recipe=recipe, num_steps=6)

    return jax.jit(run)


@pytest.fixture(scope="module")
def trained():
    space = cell()
    arch = jnp.array([0, 0, 1, 1])
    return space, arch, trainer(space.supernet(space.full_bucket))(jax.random.key(0), arch)


def test_it_learns_what_only_a_state_can_tell(trained):
    _, _, outcome = trained
    assert outcome.train_curve.shape == outcome.valid_curve.shape == (8,)
    assert outcome.train_curve[0] > outcome.train_curve[-1]
    # Without a state it would be 0.69; with one, a stream's first letters remain unknown.
    assert outcome.valid_loss < 0.2 < 0.4 < outcome.valid_curve[0]
    assert outcome.test_loss < 0.2
    assert outcome.valid_curve[-1] == outcome.valid_loss


def test_a_routed_supernet_trains_like_the_network_itself(trained):
    space, arch, outcome = trained
    alone = trainer(space.network(np.asarray(arch)))(jax.random.key(0))
    np.testing.assert_allclose(alone.valid_curve, outcome.valid_curve, rtol=1e-2, atol=1e-3)


def test_evaluation_carries_the_state_across_windows(trained):
    space, arch, outcome = trained
    module = space.supernet(space.full_bucket)
    long, short = (
        language_model.evaluate(
            module, outcome.variables, arch, TEXT.valid, batch_size=2, num_steps=num_steps
        )
        for num_steps in (36, 4)
    )
    np.testing.assert_allclose(long, short, rtol=1e-5)


def test_one_step_is_that_of_optax():
    """Stochastic gradients with clipping and weight decay, as DARTS trains its cells."""
    module = LSTM(2, 4)
    text = from_string("aabb" * 12, valid_fraction=0.34, test_fraction=0.34)
    recipe = Recipe(
        epochs=1,
        batch_size=2,
        optimizer="sgd",
        learning_rate=2.0,
        clip_norm=0.01,
        weight_decay=0.01,
    )
    tokens = text.train  # 2 streams of 8: one window of 7
    outcome = language_model.train(jax.random.key(0), module, text, recipe=recipe, num_steps=7)
    k_init, _ = jax.random.split(jax.random.key(0))
    params = module.init(k_init, tokens[None, :1], train=False)["params"]
    x, y = windows(tokens, 2, 7)

    def loss(params):
        logits = module.apply({"params": params}, x, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    rule = optax.chain(
        optax.clip_by_global_norm(0.01),
        optax.add_decayed_weights(0.01, mask=module.weights(params)),
        optax.sgd(2.0),
    )
    steps, _ = rule.update(gradient, rule.init(params), params)
    expected = optax.apply_updates(params, steps)
    np.testing.assert_allclose(outcome.train_curve[0], value, rtol=1e-5)
    for got, want in zip(
        jax.tree.leaves(outcome.variables["params"]), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_the_key_decides_and_dropout_averages_and_statistics_work():
    module = cell(dropout=Dropout(0.1, 0.2, 0.2, 0.2), normalise=True).network(np.zeros(4, int))
    recipe = Recipe(epochs=2, batch_size=4, learning_rate=0.02, average=0.9)
    run = trainer(module, recipe)
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    assert first.valid_loss == again.valid_loss != other.valid_loss
    assert set(first.variables) == {"params", "batch_stats"}
    assert (first.variables["batch_stats"]["mean"] != 0.0).any()
    assert np.isnan(first.valid_curve[0]) and np.isfinite(first.valid_loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing at its default"),
        ({"batch_size": None}, "must have a batch_size"),
    ],
)
def test_recipes_for_other_data_are_refused(options, message):
    recipe = Recipe(**({"epochs": 1, "batch_size": 4} | options))
    with pytest.raises(ValueError, match=message):
        language_model.train(jax.random.key(0), LSTM(2, 4), TEXT, recipe=recipe, num_steps=6)


class TestProblem:
    """`jaxnas.oneshot.language`, wherever the frame of one-shot methods is."""

    def make(self, **options):
        pytest.importorskip("jaxnas.oneshot.problem")
        from jaxnas.oneshot.language import language_problem

        return language_problem(cell(normalise=True), **options)

    def test_loss_mixes_and_routes(self):
        problem = self.make()
        assert problem.rows == (5, 5, 5)
        assert problem.row_operations[2][0] == "none"
        weights, rest = problem.init(jax.random.key(0))
        assert set(rest) == {"batch_stats"}
        batch = Split(*(rows[:8] for rows in windows(TEXT.train, 4, 6)))
        loss = jax.jit(problem.loss, static_argnums=5)
        key = jax.random.key(1)
        for choice in (jnp.full((3, 5), 0.2), problem.sample(key)):
            value, (after, score) = loss(key, weights, rest, choice, batch, True)
            assert score == -value < 0.0
            assert jax.tree.structure(after) == jax.tree.structure(rest)
            assert (after["batch_stats"]["mean"] != rest["batch_stats"]["mean"]).any()
            _, (same, _) = loss(key, weights, rest, choice, batch, False)
            assert (same["batch_stats"]["mean"] == rest["batch_stats"]["mean"]).all()
        decayed = problem.decayed(weights)
        assert decayed["node_kernels"] and not decayed["bias"]
        strengths = jnp.zeros((3, 5)).at[0, 2].set(1.0).at[2, 4].set(1.0)
        assert problem.derive(strengths).tolist() == [0, 1, 1, 3]

    def test_state_is_carried_on_request(self):
        problem = self.make(batch_size=4)
        weights, rest = problem.init(jax.random.key(0))
        assert rest[HIDDEN]["state"].shape == (1, 4, 8)
        batch = Split(*(rows[:4] for rows in windows(TEXT.train, 4, 6)))
        arch = jnp.array([0, 0, 1, 1])
        _, (after, _) = problem.loss(jax.random.key(1), weights, rest, arch, batch, True)
        assert (after[HIDDEN]["state"] != 0.0).any()

    def test_other_spaces_are_refused(self):
        self.make()
        from jaxnas.oneshot.language import language_problem

        with pytest.raises(ValueError, match="must have a language model as supernet"):
            language_problem(nasbench201())
