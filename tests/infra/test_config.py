"""A config's mistakes are all reported at once, before anything starts."""

import pytest

from infra.config import Config, dump_config, load_config
from infra.errors import UserError
from infra.storage import commit


class Inner(Config):
    steps: int = 3
    rate: float = 0.1


class Outer(Config):
    name: str = "a"
    training: Inner = Inner()
    maybe: Inner | None = None


def test_two_typos_and_a_wrong_type_are_one_message(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("nmae: x\ntraining:\n  stepz: 4\n  rate: fast\n")
    with pytest.raises(UserError) as error:
        load_config(Outer, file, ["maybe.step=1"])
    message = str(error.value)
    assert "4 mistakes" in message
    assert "nmae: unknown key; did you mean 'name'?" in message
    assert "training.stepz: unknown key; did you mean 'steps'?" in message
    assert "training.rate: given 'fast'" in message
    assert "maybe.step: unknown key; did you mean 'steps'?" in message


def test_overrides_win_and_what_is_dumped_reads_back(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("training:\n  steps: 5\n")
    config = load_config(Outer, file, ["training.steps=7", "maybe.rate=0.5"])
    assert (config.training.steps, config.maybe.rate) == (7, 0.5)
    file.write_text(dump_config(config))
    assert load_config(Outer, file) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [("steps", "expected key=value"), ("name.x=1", "unable|string|valid"), ("training.steps=[", "not readable")],
)
def test_bad_overrides(override, message):
    with pytest.raises(UserError, match=message):
        load_config(Outer, None, [override])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        load_config(Outer, tmp_path / "gone.yaml")


def test_a_file_may_lie_in_an_object_store():
    with pytest.raises(UserError, match=r"memory://configs/gone\.yaml: there is no such file"):
        load_config(Outer, "memory://configs/gone.yaml")
    commit("memory://configs/c.yaml", dump_config(Outer()).encode())
    assert load_config(Outer, "memory://configs/c.yaml") == Outer()
