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
    "model.init_seed": 3,
    "model.freeze": ["embedding"],
    "model.width": 32,
    "model.head": "hurdle",
    "model.floor": 0.0,
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
    "optim.averaging": "swa",
    "optim.ema_decay": 0.5,
    "optim.swa_from": 0.5,
    "loss.name": "huber",
    "loss.delta": 0.3,
    "data.val_share": 0.3,
    "data.split_seed": 4,
    "data.refit": True,
    "data.isolated_atoms": "keep",
    **{
        f"{section}.{name}": value
        for section in ("augment", "tta")
        for name, value in {
            "strain": "free",
            "strain_size": 2e-3,
            "displacement": "free",
            "displacement_size": 0.01,
            "distribution": "uniform",
        }.items()
    },
    "augment.probability": 0.5,
    "augment.labels": "corrected",
    "consistency.weight": 0.5,
    "consistency.target": "two_sided",
    "consistency.ramp": 0.5,
    "consistency.supervised": True,
    "tta.views": 4,
    "tta.identity": False,
    "tta.aggregate": "median",
    "tta.corrected": True,
    "ensemble.members": 3,
    "ensemble.combine": "median",
    "distil.weight": 0.5,
    "distil.teachers": "in_sample",
    "distil.inner_folds": 4,
    "distil.seeds": 2,
    "distil.teacher_start": "r2scan",
    "distil.weighting": "noise",
    "distil.temperature": 0.5,
    "distil.features": 0.1,
    "multitask.tasks": ["other"],
    "multitask.epochs": 3,
    "multitask.mixing": "equal",
    "multitask.weighting": "uncertainty",
    "multitask.weight": 0.3,
    "multitask.max_rows": 100,
    "multitask.keep_overlap": True,
}
WANTS: dict[str, dict[str, Any]] = {  # what must be there for a value to be allowed
    "model.width": {"model.start": "scratch"},
    "consistency.weight": {"augment.strain": "symmetry"},
    "tta.identity": {"tta.views": 4},
}


def test_every_field_has_another_value_here() -> None:
    assert set(OTHER_VALUES) == set(dotted_names())


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_fingerprint_changes_with_every_field(key: str) -> None:
    base = RunConfig(task="t").changed(WANTS.get(key, {}))
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
    config = RunConfig(task="t").changed({k: v for k, v in OTHER_VALUES.items() if k != "model.width"})
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


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"model.width": 32}, "start=scratch"),
        ({"consistency.weight": 1.0}, "wants a perturbation"),
        ({"consistency.weight": 1.0, "augment.strain": "free", "augment.strain_size": 0}, "wants a perturbation"),
        ({"tta.identity": False}, "views of 2 or more"),
        ({"tta.views": 2, "tta.strain": "none", "tta.displacement": "none"}, "wants a perturbation"),
        ({"ensemble.combine": "soup", "model.start": "scratch"}, "members of one start"),
        ({"multitask.tasks": ["t"]}, "target itself"),
        ({"multitask.tasks": ["a", "a"]}, "twice"),
    ],
)
def test_levers_that_do_not_fit_together_are_refused_in_one_line(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted) as problem:
        RunConfig(task="t").changed(changes)
    assert "\n" not in str(problem.value)
    assert "Value error" not in str(problem.value)


def test_any_pretrained_weights_in_the_result_count_for_its_tier() -> None:
    scratch = RunConfig(task="t").changed({"model.start": "scratch"})
    assert not scratch.uses_pretrained
    assert not scratch.changed({"distil.weight": 0.5}).uses_pretrained
    assert scratch.changed({"distil.weight": 0.5, "distil.teacher_start": "0.3.0"}).uses_pretrained
    assert scratch.changed({"augment.strain": "free", "augment.labels": "corrected"}).uses_pretrained
    assert scratch.changed({"tta.views": 2, "tta.corrected": True}).uses_pretrained


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
