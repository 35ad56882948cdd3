"""Roles, TF_CONFIG and the division of a batch: arithmetic only."""

from __future__ import annotations

import json

import pytest

from tfspark.cluster.program import is_main_fun, pickled
from tfspark.errors import ConfigError
from tfspark.protocol.roles import NodeSpec, local_batch_size, plan_nodes, reader_number, tf_config
from tfspark.protocol.settings import Hooks


@pytest.mark.parametrize(
    ("num_executors", "num_ps", "eval_node", "names"),
    [
        pytest.param(1, 0, False, ["worker 0"], id="the chief alone"),
        pytest.param(3, 0, False, ["worker 0", "worker 1", "worker 2"], id="workers only"),
        pytest.param(2, 0, True, ["worker 0", "evaluator 0"], id="the evaluator is one of the nodes"),
        pytest.param(
            5,
            2,
            True,
            ["worker 0", "worker 1", "ps 0", "ps 1", "evaluator 0", "chief 0"],
            id="all roles, workers first; the chief of parameter servers is one more",
        ),
    ],
)
def test_plan_nodes_when_roles_fit_numbers_them(
    num_executors: int, num_ps: int, eval_node: bool, names: list[str]
) -> None:
    nodes = plan_nodes(num_executors, num_ps, eval_node)

    assert [node.name for node in nodes] == names
    assert [node.index for node in nodes] == list(range(num_executors + int(num_ps > 0)))


@pytest.mark.parametrize(
    ("num_executors", "num_ps", "eval_node", "advice"),
    [
        pytest.param(0, 0, False, "num_executors >= 1", id="no node"),
        pytest.param(2, -1, False, "num_ps=-1", id="a negative number of parameter servers"),
        pytest.param(2, 2, False, "set num_executors to 3 or more", id="parameter servers only"),
        pytest.param(1, 0, True, "set num_executors to 2 or more", id="an evaluator only"),
        pytest.param(2, 1, True, "set num_executors to 3 or more", id="every role but workers"),
    ],
)
def test_plan_nodes_when_no_worker_is_left_says_how_many_to_ask_for(
    num_executors: int, num_ps: int, eval_node: bool, advice: str
) -> None:
    with pytest.raises(ConfigError, match=advice):
        plan_nodes(num_executors, num_ps, eval_node)


def test_tf_config_of_each_role_names_all_but_the_evaluator() -> None:
    nodes = plan_nodes(4, num_ps=1, eval_node=True)
    addresses = {index: f"h{index}:{7000 + index}" for index in range(5)}

    configs = [json.loads(tf_config(nodes, addresses, node)) for node in nodes]

    expected = {"worker": ["h0:7000", "h1:7001"], "ps": ["h2:7002"], "chief": ["h4:7004"]}
    assert [config["cluster"] for config in configs] == [expected] * 5
    assert [(c["task"]["type"], c["task"]["index"]) for c in configs] == [
        ("worker", 0), ("worker", 1), ("ps", 0), ("evaluator", 0), ("chief", 0),
    ]  # fmt: skip


def test_local_batch_size_when_it_divides_is_the_quotient() -> None:
    assert local_batch_size(96, 3) == 32


@pytest.mark.parametrize(
    ("batch_size", "num_workers", "advice"),
    [
        pytest.param(65, 2, "got 65; use 64 or 66", id="between two that divide"),
        pytest.param(1, 2, "got 1; use 2$", id="fewer rows than workers: there is none below"),
        pytest.param(0, 4, "got 0; use 4$", id="none"),
    ],
)
def test_local_batch_size_when_it_does_not_divide_names_the_nearest(
    batch_size: int, num_workers: int, advice: str
) -> None:
    with pytest.raises(ConfigError, match=advice):
        local_batch_size(batch_size, num_workers)


def main_fun(args: object, ctx: object) -> None:
    del args, ctx


class Trainer:
    def main_fun(self, args: object, ctx: object) -> None:
        del args, ctx

    def __call__(self, params: object) -> None:
        del params


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        pytest.param(main_fun, True, id="main_fun(args, ctx)"),
        pytest.param(lambda params: params, False, id="build_model(params)"),
        pytest.param(lambda: None, False, id="build_model()"),
        pytest.param(lambda params, depth=3: params, False, id="a parameter with a default is not required"),
        pytest.param(lambda args, ctx, depth=3: args, True, id="a default after args and ctx"),
        pytest.param(Trainer().main_fun, True, id="a method: self is bound"),
        pytest.param(Trainer(), False, id="an object that can be called"),
    ],
)
def test_is_main_fun_counts_required_arguments(function: object, expected: bool) -> None:
    assert is_main_fun(function) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        pytest.param(lambda args, ctx, extra: None, r"\(args, ctx, extra\)", id="three arguments"),
        pytest.param("build_model", "got str", id="a name instead of a function"),
    ],
)
def test_is_main_fun_when_the_function_is_wrong_says_what_is_expected(function: object, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"main_fun\(args, ctx\).*build_model\(params\).*{found}"):
        is_main_fun(function)  # type: ignore[arg-type]


def test_pickled_when_arguments_cannot_be_pickled_says_what_to_do() -> None:
    import threading

    with pytest.raises(ConfigError, match=r"lock.*create models, sessions and files inside the function"):
        pickled(main_fun, {"lock": threading.Lock()}, Hooks())


def test_node_name_is_role_and_number() -> None:
    assert NodeSpec(3, "ps", 1).name == "ps 1"


def test_reader_number_is_different_for_every_attempt_of_every_worker() -> None:
    nodes = plan_nodes(5, num_ps=2)
    workers = [node for node in nodes if node.role == "worker"]
    numbers = [[reader_number(nodes, node, attempt) for node in workers] for attempt in (1, 2, 3)]
    assert numbers == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
