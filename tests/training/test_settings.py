"""Settings that make no sense are refused by name, and the schedules are what they say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saegis_lab.training.settings import SAETraining


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architecture": "topk"}, "architecture is 'topk', not one of batchtopk, jumprelu, standard"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"features": 0}, "features is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"dead_after": 0}, "dead_after is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"k": 0.0}, "k is 0.0"),
        ({"k": 65, "features": 64}, "k is 65; it must be above 0 and at most features, 64"),
        ({"k": float("nan")}, "k is nan"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"auxiliary": -0.1}, "auxiliary is -0.1"),
        ({"warmup": 1.5}, "warmup is 1.5"),
        ({"sparsity_warmup": -0.1}, "sparsity_warmup is -0.1"),
        ({"warmup": 0.6, "decay": 0.6}, "warmup and decay are 0.6 and 0.6"),
        ({"groups": (8, 8), "features": 17}, "groups sum to 16, but features is 17"),
        ({"groups": (0, 16), "features": 16}, "each must have at least one feature"),
        ({"architecture": "jumprelu", "groups": (1024,)}, "groups are for the architecture batchtopk"),
        ({"architecture": "standard", "k": 20}, "k cannot be asked of the architecture standard"),
        ({"l1_coefficient": 5.0}, "l1_coefficient is for the architecture standard"),
        (
            {"architecture": "standard", "l0_coefficient": 1.0},
            "l0_coefficient is for the architecture jumprelu",
        ),
        ({"architecture": "jumprelu", "l0_coefficient": 1.0, "k": 8}, "k and l0_coefficient contradict"),
        ({"architecture": "jumprelu", "l0_coefficient": -1.0}, "l0_coefficient is -1.0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("(", r"\(")):
        SAETraining(**changes)  # type: ignore[arg-type]


def test_defaults_depend_on_the_architecture() -> None:
    assert SAETraining().k == 32.0
    assert SAETraining(features=16).k == 16.0
    assert SAETraining(architecture="standard").l1_coefficient == 5.0  # type: ignore[arg-type]
    assert SAETraining(architecture="jumprelu", l0_coefficient=1.0).k is None  # type: ignore[arg-type]
    assert SAETraining(features=4096).learning_rate == pytest.approx(1e-3)


@given(
    steps=st.integers(1, 3000),
    warmup=st.floats(0.0, 0.5),
    decay=st.floats(0.0, 0.5),
    sparsity_warmup=st.floats(0.0, 1.0),
)
def test_the_rate_rises_and_falls_in_line_and_the_penalty_only_rises(
    steps: int, warmup: float, decay: float, sparsity_warmup: float
) -> None:
    made = SAETraining(
        steps=steps, warmup=warmup, decay=decay, sparsity_warmup=sparsity_warmup, learning_rate=1.0
    )
    rates = [made.rate(step) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0.0 < rate <= 1.0 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    # After the last step it would be 0, in a straight line.
    assert rates[-1] <= 1.0 / max(1.0, decay * steps) + 1e-9
    shares = [made.sparsity(step) for step in range(steps)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0 or sparsity_warmup == 1.0 or steps == 1
