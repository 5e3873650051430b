"""Members of an ensemble that differ in settings: which there are, and that other runs keep their fingerprints."""

from typing import Any

import pytest

from trainables import config as config_module
from trainables.config import RunConfig, merged, parse_config, parse_variations


def test_fingerprints_are_those_of_the_runs_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders and models of runs are named by them: a new setting that is off must not change one."""
    monkeypatch.setattr(config_module, "TRAINING_VERSION", 2)
    monkeypatch.setattr(config_module, "CONVERTER_VERSION", 5)
    monkeypatch.setattr(config_module, "version", lambda name: "0.4.2")
    plain = RunConfig(task="matbench_jdft2d")
    changed = plain.changed({"optim.lr": 5e-4, "ensemble.members": 3, "ensemble.combine": "greedy"})
    assert plain.fingerprint("data") == "966638d6fe9e29e8"
    assert changed.fingerprint("data") == "77bef01b0c87e697"
    assert "vary" not in changed.to_yaml()
    assert changed.changed({"ensemble.vary": {}}).fingerprint("data") == "77bef01b0c87e697"


def test_members_are_all_seeds_of_every_combination_in_an_order_of_their_own() -> None:
    varied = {"optim.lr": [1e-3, 5e-4], "model.start": ["r2scan", "0.3.0"]}
    config = RunConfig(task="t").changed({"seed": 3, "ensemble.members": 2, "ensemble.vary": varied, "tta.views": 4})
    assert config.ensemble.size == 8
    found = [config.member(index) for index in range(8)]
    assert [(each.model.start, each.optim.lr, each.seed) for each in found] == [
        (start, lr, seed) for start in ("r2scan", "0.3.0") for lr in (1e-3, 5e-4) for seed in (3, 4)
    ]
    assert found[3] == RunConfig(task="t").changed({"seed": 4, "model.start": "r2scan", "optim.lr": 5e-4})
    nested = {"ensemble": {"members": 2, "vary": {"model": {"start": ["r2scan", "0.3.0"]}, "optim.lr": [1e-3, 5e-4]}}}
    again = parse_config(merged({"task": "t", "seed": 3, "tta": {"views": 4}}, nested), "nested")
    assert again == config
    assert (hash(again), again.fingerprint("data")) == (hash(config), config.fingerprint("data"))


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (
            ["model.start=0.3.0,r2scan", "optim.lr=1e-3, 5e-4"],
            {"model.start": ["0.3.0", "r2scan"], "optim.lr": [1e-3, 5e-4]},
        ),
        (["optim.lr=[1e-3, 5e-4]"], {"optim.lr": [1e-3, 5e-4]}),
        (["model.freeze=[],[embedding, basis]"], {"model.freeze": [[], ["embedding", "basis"]]}),
        (["model.floor=null,0"], {"model.floor": [None, 0]}),
    ],
)
def test_what_varies_is_read_as_yaml_values(texts: list[str], wanted: dict[str, Any]) -> None:
    assert parse_variations(texts) == wanted
    RunConfig(task="t").changed({"ensemble.vary": wanted})


def test_any_variant_from_pretrained_weights_counts_for_the_tier() -> None:
    scratch = RunConfig(task="t").changed({"model.start": "scratch"})
    assert not scratch.changed({"ensemble.vary": {"optim.lr": [1e-3, 5e-4]}}).uses_pretrained
    assert scratch.changed({"ensemble.vary": {"model.start": ["scratch", "r2scan"]}}).uses_pretrained
