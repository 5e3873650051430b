"""RunConfig: what it refuses, how it is written, and when its fingerprint changes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from trainables import config as config_module
from trainables.config import (
    RunConfig,
    dotted_names,
    for_task,
    load_config,
    merged,
    parse_assignments,
    parse_config,
)
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
    "model.family": "tabular",
    "model.phonons": True,
    "model.physics": True,
    "model.transform": "asinh",
    "model.scale": "robust",
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
    "optim.ema_half_life": 0.1,
    "optim.patience": 10,
    "optim.towards_start": 0.1,
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
    "ensemble.inner_folds": 5,
    "ensemble.vary": {"optim.lr": [1e-3, 5e-4]},
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
    excluding = ("model.width", "model.family", "ensemble.inner_folds")  # which others exclude
    config = RunConfig(task="t").changed({k: v for k, v in OTHER_VALUES.items() if k not in excluding})
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
        ({"consistency.weight": 1.0}, "requires a perturbation"),
        ({"consistency.weight": 1.0, "augment.strain": "free", "augment.strain_size": 0}, "requires a perturbation"),
        ({"tta.identity": False}, "views of at least 2"),
        ({"tta.views": 2, "tta.strain": "none", "tta.displacement": "none"}, "requires a perturbation"),
        ({"ensemble.combine": "soup", "model.start": "scratch"}, "members with the same start"),
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
    with pytest.raises(UserError, match="KEY=VALUE"):
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


def told(assignment: str) -> str:
    """What a wrong --set is told."""
    with pytest.raises(UserError) as problem:
        parse_config(merged({"task": "t"}, parse_assignments([assignment])), "configuration")
    assert "\n" not in str(problem.value)
    assert len(str(problem.value)) < 400
    return str(problem.value)


@pytest.mark.parametrize(
    ("assignment", "meant"),
    [
        ("epochs=3", "did you mean 'optim.epochs' or 'multitask.epochs'?"),
        ("n_epochs=3", "'optim.epochs'"),
        ("max-epochs=3", "'optim.epochs'"),
        ("multitask.epoch=3", "did you mean 'multitask.epochs'?"),
        ("lr=1e-3", "did you mean 'optim.lr'?"),
        ("learning_rate=1e-3", "did you mean 'optim.lr'?"),
        ("learning-rate=1e-3", "did you mean 'optim.lr'?"),
        ("optim.learning_rate=1e-3", "did you mean 'optim.lr'?"),
        ("optim.learnin_rate=1e-3", "did you mean 'optim.lr'?"),
        ("optimizer.lr=1e-3", "did you mean 'optim.lr'?"),
        ("Optim.LR=1e-3", "did you mean 'optim.lr'?"),
        ("batchsize=8", "did you mean 'optim.batch_size'?"),
        ("batch-size=8", "did you mean 'optim.batch_size'?"),
        ("wd=0.1", "did you mean 'optim.weight_decay'?"),
        ("optim.weight=0.1", "did you mean 'optim.weight_decay'?"),
        ("optimizer=adam", "did you mean 'optim.name'?"),
        ("scheduler=cosine", "did you mean 'optim.schedule'?"),
        ("seeds=3", "did you mean 'ensemble.members', 'seed' or 'distil.seeds'?"),
        ("ensemble.seeds=3", "'ensemble.members'"),
        ("random_state=3", "did you mean 'seed'?"),
        ("hidden_dim=32", "did you mean 'model.width'?"),
        ("val_ratio=0.1", "did you mean 'data.val_share'?"),
        ("weight=1", "'consistency.weight', 'distil.weight' or 'multitask.weight'"),
        ("distill.weight=1", "did you mean 'distil.weight'?"),
        ("patience=5", "did you mean 'optim.patience'?"),
        ("early_stopping=5", "did you mean 'optim.patience'?"),
        ("early-stopping=5", "did you mean 'optim.patience'?"),
        ("optim.earlystoping=5", "did you mean 'optim.patience'?"),
        ("dropout=0.1", "there is no dropout"),
        ("layers=4", "architecture is fixed"),
        ("device=cuda", "`device=cuda`"),
        ("optim.zzz=3", "optim has name, lr, "),
        ("zzz=3", "the sections are model, optim, loss"),
        ("optim=3", "optim is a section; set one of optim.name, optim.lr"),
        ("model.start=R2SCAN", "did you mean 'r2scan'?"),
    ],
)
def test_the_words_that_people_bring_are_told_the_key_or_why_there_is_none(assignment: str, meant: str) -> None:
    assert meant in told(assignment)


def test_every_word_that_is_known_leads_to_keys_that_exist() -> None:
    from trainables.hints import SECTION_WORDS, WORDS, squashed

    names = list(dotted_names())
    for word, keys in WORDS.items():
        assert word == squashed(word)
        assert isinstance(keys, str) or set(keys) <= set(names), word
    assert set(SECTION_WORDS.values()) <= {name.split(".")[0] for name in names}


def test_an_unknown_section_of_a_file_is_told_the_section_that_is_meant() -> None:
    with pytest.raises(UserError, match=r"unknown key 'optimizer.learning_rate' \(did you mean 'optim.lr'\?\)"):
        parse_config({"task": "t", "optimizer": {"learning_rate": 1e-3}}, "mine.yaml")
    with pytest.raises(UserError, match=r"unknown section 'augmentation' \(did you mean 'augment'\?\)"):
        parse_config({"task": "t", "augmentation": {}}, "mine.yaml")


def test_the_configuration_of_a_run_is_used_for_whatever_task_the_command_names(tmp_path: Path) -> None:
    RunConfig(task="matbench_mp_gap", fold=3).changed({"model.floor": 0.0, "optim.lr": 3e-4}).save(tmp_path / "c.yaml")
    content = load_config(tmp_path / "c.yaml")
    settings, note = for_task(content, "jdft2d", "c.yaml")
    assert "task" not in settings
    assert "fold" not in settings
    config = parse_config(merged({"task": "matbench_jdft2d"}, settings), "configuration")
    assert (config.task, config.fold, config.optim.lr) == ("matbench_jdft2d", 0, 3e-4)
    assert note is not None
    for part in ("c.yaml", "matbench_mp_gap", "matbench_jdft2d", "model.floor=0.0"):
        assert part in note
    assert for_task(content, "MP-gap")[1] is None
    assert content["task"] == "matbench_mp_gap"  # what was given is as it was
    assert for_task({"optim": {"lr": 1e-3}}, "jdft2d") == ({"optim": {"lr": 1e-3}}, None)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_has_no_settings(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml") == {}


def test_anchors_and_merge_keys_give_sections_what_they_share(tmp_path: Path) -> None:
    text = """
    shared: &shared {lr: 1e-3, epochs: 3}
    x-note: {whatever: 1}
    optim:
      <<: *shared
      epochs: 2
    augment: &strain {strain: free, strain_size: 1e-3}
    tta:
      <<: *strain
      views: 3
    """
    (tmp_path / "c.yaml").write_text(text)
    config = parse_config(merged({"task": "t"}, load_config(tmp_path / "c.yaml")), "c.yaml")
    assert (config.optim.lr, config.optim.epochs, config.augment.strain) == (1e-3, 2, "free")
    assert (config.tta.strain, config.tta.views) == ("free", 3)


def test_a_misspelt_section_is_no_holder_of_anchors(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("optm: &o {lr: 1e-3}\noptim: *o\n")
    with pytest.raises(UserError, match=r"'optm"):
        parse_config(merged({"task": "t"}, load_config(tmp_path / "c.yaml")), "c.yaml")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- optim", "contains a list"),
        ("optim", "contains a single value"),
        ("1: 2", "key 1 is not text"),
        ("optim: {1: 2}", "key 1 in optim is not text"),
        ("optim:\n\tlr: 1e-3", "line 2: a tab"),
        ("optim: {lr: 1e-3}\nseed: 1\noptim: {epochs: 3}", "line 3: 'optim' is given twice"),
        ("optim:\n  lr: 1\n  lr: 2", "line 3: 'lr' is given twice"),
        ("seed: 1\n---\nseed: 2", "a second document begins"),
        ("seed: *nothing", "undefined alias 'nothing'"),
        ("a: b: c", "line 1"),
        ("x: !!python/object:os.system {}", "line 1"),
        ("seed: &a [*a]\noptim: {lr: *b}", "undefined alias"),
        ("seed: \x00", "not allowed"),
    ],
)
def test_what_is_wrong_with_a_yaml_file_is_one_line_with_its_place(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as problem:
        load_config(path)
    assert part in str(problem.value)
    assert str(path) in str(problem.value)
    assert "\n" not in str(problem.value)


def test_numbers_without_a_dot_are_numbers_everywhere(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("{a: 1e-4, b: -2E3, c: '1e-4', d: 0.3.0, e: [1e0]}")
    assert load_config(tmp_path / "c.yaml") == {"a": 1e-4, "b": -2000.0, "c": "1e-4", "d": "0.3.0", "e": [1.0]}
    assert parse_assignments(["optim.lr=1e-4", "model.start=0.3.0"]) == {"optim.lr": 1e-4, "model.start": "0.3.0"}
    with pytest.raises(UserError, match=r"`settings=model.freeze=\[a`: .* is not a YAML value"):
        parse_assignments(["model.freeze=[a"])


def test_every_setting_is_described_in_a_whole_sentence() -> None:
    def described(model: type[BaseModel]) -> Iterator[str]:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from described(kind)
            else:
                assert field.description, name
                yield field.description

    told = list(described(RunConfig))
    assert len(told) > 50
    for sentence in told:
        assert sentence[0].isupper(), sentence
        assert sentence.endswith("."), sentence
