"""Compare training with parameter servers with plain Keras: real TensorFlow servers in a process without Spark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest
from support.processes import json_of_python

from tfspark.errors import ConfigError
from tfspark.training.ps.session import refuse_unsupported

TRIAL = Path(__file__).with_name("ps_trial.py")
TRIAL_S = 300.0
ROWS, STEPS, EPOCHS = 200, 13, 3
EXACT = ("sgd", "momentum", "adam", "adamw", "unbuilt", "conv", "lstm", "large", "places", "words")


def trial(num_workers: int, num_ps: int, *models: str) -> dict[str, Any]:
    """Train models in a separate process; return their results."""
    arguments = str(TRIAL), str(num_workers), str(num_ps), *models
    result: dict[str, Any] = json_of_python(*arguments, timeout_s=TRIAL_S)
    return result


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """Train with one worker and two parameter servers: the steps are sequential, as in one process."""
    return trial(1, 2, *EXACT, "state", "gan")


@pytest.fixture(scope="module")
def together() -> dict[str, Any]:
    """Train with two workers and one parameter server."""
    return trial(2, 1, "momentum", "gru")


@pytest.mark.parametrize("model", EXACT)
def test_weights_of_one_worker_equal_those_of_plain_keras(alone: dict[str, Any], model: str) -> None:
    result = alone[model]
    assert result["apart"] < 1e-6
    for name, values in result["plain_history"].items():
        assert result["history"][name] == pytest.approx(values, rel=1e-4), name
    for name, value in result["plain_tests"].items():
        assert result["tests"][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("model", ["state", "gan"])
def test_training_with_random_layers_learns_as_plain_keras_does(alone: dict[str, Any], model: str) -> None:
    result = alone[model]
    assert set(result["history"]) == set(result["plain_history"])
    for name, values in result["plain_history"].items():
        assert result["history"][name][-1] == pytest.approx(values[-1], abs=0.15), name


def test_iterations_of_every_optimizer_equal_the_number_of_steps(
    alone: dict[str, Any], together: dict[str, Any]
) -> None:
    assert alone["adamw"]["iterations"] == [STEPS * EPOCHS]
    assert together["momentum"]["iterations"] == together["gru"]["iterations"] == [STEPS * EPOCHS]
    # The GAN has a third optimizer, from `compile`, which its train_step does not use.
    assert sorted(alone["gan"]["iterations"])[-2:] == [STEPS * EPOCHS] * 2


def test_every_epoch_trains_on_all_rows(alone: dict[str, Any], together: dict[str, Any]) -> None:
    for result in [*alone.values(), *together.values()]:
        assert result["rows"] == [ROWS] * EPOCHS


def test_evaluation_counts_every_row_by_class(alone: dict[str, Any]) -> None:
    for model in EXACT:
        assert sum(map(sum, alone[model]["confusion_matrix"])) == ROWS
        assert all(points > 1 for points in alone[model]["curves"])
        assert len(alone[model]["curves"]) == 3
    assert alone["gan"]["confusion_matrix"] is None, "it predicts no label"


def test_variables_are_spread_over_all_parameter_servers(alone: dict[str, Any]) -> None:
    assert [name.split("/device")[0] for name in alone["sgd"]["servers"]] == [
        "/job:ps/replica:0/task:0",
        "/job:ps/replica:0/task:1",
    ]


def test_large_embedding_is_divided_among_servers_and_exported_whole(alone: dict[str, Any]) -> None:
    assert alone["large"]["shapes"][:2] == [[4500, 16], [4500, 16]]
    assert alone["large"]["exported_shapes"][0] == [9000, 16]


def test_two_workers_learn_as_plain_keras_does(together: dict[str, Any]) -> None:
    for model in ("momentum", "gru"):
        result = together[model]
        assert result["tests"]["loss"] == pytest.approx(result["plain_tests"]["loss"], abs=0.15)


@pytest.mark.parametrize(
    ("compiled", "message"),
    [
        pytest.param(
            {"optimizer": lambda: keras.optimizers.SGD(gradient_accumulation_steps=4)},
            "without gradient_accumulation_steps",
            id="workers would add to each other's gradients",
        ),
        pytest.param(
            {"optimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())},
            "no LossScaleOptimizer",
            id="workers would change the scale under each other",
        ),
        pytest.param(
            {"optimizer": keras.optimizers.SGD, "steps_per_execution": 4},
            "steps_per_execution=1 under parameter servers, got 4",
            id="several steps at once",
        ),
        pytest.param(
            {"optimizer": keras.optimizers.SGD, "run_eagerly": True},
            "without run_eagerly=True",
            id="steps must be graphs",
        ),
    ],
)
def test_error_of_an_unsupported_argument_of_compile_says_what_to_change(
    compiled: dict[str, Any], message: str
) -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(**{**compiled, "optimizer": compiled["optimizer"]()}, loss="mse")

    with pytest.raises(ConfigError, match=message):
        refuse_unsupported(model)
