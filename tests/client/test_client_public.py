"""The client's public face: its names, its weight, and the likeness of its twins."""

import inspect
import subprocess
import sys
import types
from pathlib import Path

import saegis

#: What `import grpc` itself loads where it is installed.
LOADED_BY_GRPC = {"grpc_tools", "grpc_health", "grpc_reflection"}


def test_all_is_complete_and_sorted() -> None:
    public = {
        name
        for name, value in vars(saegis).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(saegis.__all__) == public | {"__version__"}
    assert saegis.__all__ == sorted(
        saegis.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )


def test_every_public_class_and_function_is_documented() -> None:
    for name in saegis.__all__:
        value = getattr(saegis, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name


def test_the_tree_of_errors_is_drawn() -> None:
    errors = [
        value
        for value in vars(saegis).values()
        if inspect.isclass(value)
        and issubclass(value, saegis.SaegisError)
        and value is not saegis.SaegisError
    ]
    drawing = saegis.errors.__doc__ or ""
    drawn = [line.split()[1] for line in drawing.splitlines() if "──" in line]
    assert sorted(drawn) == sorted(error.__name__ for error in errors)
    assert all(error.__bases__ == (saegis.SaegisError,) for error in errors)


def test_twins_have_the_same_methods_and_arguments() -> None:
    methods = {name for name in dir(saegis.Client) if not name.startswith("_")}
    assert methods == {name for name in dir(saegis.AsyncClient) if not name.startswith("_")}
    assert methods == {
        "close",
        "contrast_features",
        "delete_direction",
        "detokenize",
        "evaluate_policy",
        "generate",
        "get_feature",
        "get_feature_usage",
        "get_policy",
        "healthy",
        "inspect",
        "list_directions",
        "list_policies",
        "load",
        "model",
        "policy_revisions",
        "put_policy",
        "roll_back_policy",
        "score",
        "search_audit",
        "search_features",
        "server_info",
        "stream",
        "tokenize",
        "upload_direction",
        "validate_policy",
        "wait_until_ready",
    }
    for name in methods:
        blocking, asynchronous = getattr(saegis.Client, name), getattr(saegis.AsyncClient, name)
        assert inspect.signature(blocking).parameters == inspect.signature(asynchronous).parameters, name
        assert inspect.iscoroutinefunction(asynchronous) == (name != "stream"), name
        assert blocking.__doc__, name


def test_import_is_light() -> None:
    """It loads gRPC and protobuf, and nothing else that a user would have to wait for."""
    script = "import sys; before = set(sys.modules); import saegis; print(*sys.modules.keys() - before)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names
    of_cython = {name for name in loaded if name.startswith(("_cython", "cython"))}
    assert loaded - of_cython - LOADED_BY_GRPC <= {"saegis", "grpc", "google", "typing_extensions"}


def test_package_is_typed() -> None:
    assert Path(saegis.__file__).with_name("py.typed").exists()
