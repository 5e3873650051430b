"""RunConfig: what it refuses, how it is written, and when its fingerprint changes."""

from typing import Any

import pytest
import yaml

from trainables import config as config_module
from trainables.config import RunConfig, dotted_names, load_config, merged, parse_assignments, parse_config
from trainables.errors import UserError

OTHER_VALUES: dict[str, Any] = {
    "task": "another",
    "fold": 3,
    "seed": 7,
    "model.start": "r2scan",
    "model.pooling": "attention",
    "model.freeze": ["embedding"],
    "optim.name": "sgd",
    "optim.lr": 2e-4,
    "optim.layer_decay": 0.8,
    "optim.weight_decay": 0.5,
    "optim.warmup": 0.2,
    "optim.schedule": "linear",
    "optim.final_lr": 2e-5,
    "optim.epochs": 7,
    "optim.batch_size": 5,
    "optim.grad_clip": 1.0,
    "optim.ema_decay": 0.5,
    "loss.name": "huber",
    "loss.delta": 0.3,
    "data.val_share": 0.3,
    "data.refit": True,
    "data.isolated_atoms": "keep",
}


def test_every_field_has_another_value_here() -> None:
    assert set(OTHER_VALUES) == set(dotted_names())


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_fingerprint_changes_with_every_field(key: str) -> None:
    base = RunConfig(task="t")
    assert base.changed({key: OTHER_VALUES[key]}).fingerprint("data") != base.fingerprint("data")


def test_fingerprint_changes_with_data_chgnet_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    base = RunConfig(task="t")
    before = base.fingerprint("data")
    assert base.fingerprint("data") == before
    assert base.fingerprint("other data") != before
    monkeypatch.setattr(config_module, "TRAINING_VERSION", -1)
    changed = base.fingerprint("data")
    assert changed != before
    monkeypatch.setattr(config_module, "version", lambda name: "9.9")
    assert base.fingerprint("data") not in (before, changed)


def test_yaml_gives_the_same_configuration_back() -> None:
    config = RunConfig(task="t").changed(OTHER_VALUES)
    assert parse_config(yaml.safe_load(config.to_yaml()), "yaml") == config


def test_all_mistakes_are_told_at_once_with_the_nearest_names() -> None:
    content = {"task": "t", "optim": {"learning_rat": 1, "epochs": 0}, "los": {}, "model": {"start": "r2scam"}}
    with pytest.raises(UserError) as problem:
        parse_config(content, "config.yaml")
    text = str(problem.value)
    assert "\n" not in text
    for part in ("optim.learning_rat", "epochs=0", "'los'", "did you mean 'r2scan'", "config.yaml"):
        assert part in text
    with pytest.raises(UserError, match=r"did you mean 'optim.epochs'"):
        RunConfig(task="t").changed({"optim.epoch": 3})
    with pytest.raises(UserError, match=r"did you mean 'optim.lr'"):
        RunConfig(task="t").changed({"model.lr": 3})


def test_configuration_is_frozen_and_refuses_infinity() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig(task="t").seed = 3  # type: ignore[misc]
    with pytest.raises(UserError, match="finite"):
        RunConfig(task="t").changed({"optim.lr": float("inf")})


def test_assignments_are_read_as_yaml_values() -> None:
    changes = parse_assignments(["optim.lr=3e-4", "data.refit=true", "model.freeze=[embedding, basis]"])
    config = RunConfig(task="t").changed(changes)
    assert config.optim.lr == 3e-4
    assert config.data.refit is True
    assert config.model.freeze == ("embedding", "basis")
    with pytest.raises(UserError, match="key=value"):
        parse_assignments(["optim.lr"])


def test_layers_override_each_other_key_by_key() -> None:
    content = merged({"optim": {"lr": 1, "epochs": 2}}, {"optim": {"lr": 3}}, {"optim.epochs": 4, "seed": 5})
    assert content == {"optim": {"lr": 3, "epochs": 4}, "seed": 5}


def test_broken_yaml_is_one_line(tmp_path: Any) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: [1,\nb: {")
    for file in (path, tmp_path / "missing.yaml"):
        with pytest.raises(UserError) as problem:
            load_config(file)
        assert "\n" not in str(problem.value)
