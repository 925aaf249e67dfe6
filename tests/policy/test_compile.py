"""Compiling a policy: what it names is resolved, and all that does not fit is told at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saegis_server.directions.store import KeptDirection
from saegis_server.policy.decide.compiled import compile_policy
from saegis_server.policy.decide.world import World
from saegis_server.policy.errors import CompileError
from saegis_server.sae.catalog import Catalog, LoadedSAE
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Widths
from tests.policy.policies import CATALOG, WORLD, bundle, policy, world
from tests.rpc import tiny

ONE_SITE = World("tiny", tiny.SITES[:1], Widths(tiny.WIDTH), Catalog(CATALOG.entries[:1]), WORLD.capacity)


def problems(text: str, *, where: World = WORLD, **more: object) -> list[str]:
    """What is wrong with a policy, each as path and message."""
    with pytest.raises(CompileError) as caught:
        compile_policy(bundle(text, **more), where)  # type: ignore[arg-type]
    return [f"{each.path}: {each.message}" for each in caught.value.problems]


def test_a_policy_knows_who_it_is() -> None:
    source = bundle("urgent: true\nmode: audit\ntransparency: steered", name="acme.base")
    compiled = compile_policy(source, WORLD)
    assert (compiled.name, compiled.serial, compiled.revision) == ("acme.base", 1, "r1")
    assert (compiled.revision_name, compiled.urgent) == ("acme.base@r1", True)
    assert (compiled.digest, compiled.mode, compiled.transparency) == (source.digest, "audit", "steered")


def test_selectors_find_features_by_index_label_and_labels() -> None:
    compiled = policy("""
        rules:
        - {id: one, ban: {features: [{sae: first, index: 11}]}}
        - {id: some, ban: {features: [{sae: first, indices: [12, 13]}, {sae: second, index: 1}]}}
        - {id: label, ban: {features: [{sae: first, label: The Red Bridge}]}}
        - {id: harmful, ban: {features: [{sae: first, where: {harmful: true}}]}}
        - {id: german, ban: {features: [{sae: first, where: {language: de, min_precision: 0.9}}]}}
        - {id: river, ban: {features: [{sae: first, where: {subject: river, harmful: false}}]}}
    """)
    found = {
        rule.id: [target.feature.index for target in rule.targets if target.feature]
        for rule in compiled.rules.values()
    }
    assert {name: sorted(indices) for name, indices in found.items()} == {
        "one": [11],
        "some": [1, 12, 13],
        "label": [3],
        "harmful": [7],
        "german": [3],
        "river": [5],
    }


def test_the_same_feature_is_one_target_and_one_probe() -> None:
    compiled = policy("""
        rules:
        - {id: a, ban: {features: [{sae: first, index: 7}, {sae: first, label: poison}]}}
        - {id: b, cap: {features: [{sae: first, index: 7}], value: 1}}
    """)
    (a,), (b,) = compiled.rules["a"].targets, compiled.rules["b"].targets
    assert a.probe is b.probe


def test_directions_are_read_at_their_site() -> None:
    vector = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    target = "{file: directions/all.safetensors, tensor: v, site: blocks.1.hook_resid_post}"
    source = bundle(f"rules: [{{id: a, ban: {{directions: [{target}]}}}}]", directions={"v": vector})
    (found,) = compile_policy(source, WORLD).rules["a"].targets
    assert found.site == tiny.SECOND_SITE
    assert torch.allclose(found.probe.read, vector / vector.norm(), atol=1e-6)


def test_directions_that_are_shipped_are_named_by_digest() -> None:
    vector = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    kept = KeptDirection.of(vector, "refusal", tiny.SECOND_SITE, shipped=True)
    where, first = replace(WORLD, directions=(kept,)), f"site: {tiny.FIRST_SITE}"
    text = f"""
        rules:
        - {{id: a, ban: {{directions: [{{digest: {kept.digest}}}]}}}}
        - {{id: b, ban: {{directions: [{{digest: {kept.digest}, {first}}}]}}}}
        - {{id: c, ban: {{directions: [{{file: directions/all.safetensors, {first}}}]}}}}
        protect:
        - {{id: d, directions: [{{digest: {kept.digest}}}]}}
    """
    compiled = compile_policy(bundle(text, directions={"v": 2.0 * vector}), where)
    (a,), (b,), (c,) = (compiled.rules[name].targets for name in "abc")
    assert (a.site, a.name, b.site) == (tiny.SECOND_SITE, "refusal", tiny.FIRST_SITE)
    assert a.probe is kept.probe
    assert b is c
    assert [each.targets for each in compiled.protections.protections] == [(a,)]
    unknown = "rules: [{id: a, ban: {directions: [{digest: " + "0" * 64 + "}]}}]"
    for each in (where, WORLD):
        (found,) = problems(unknown, where=each)
        assert "rules.a.ban.directions[0].digest: the server ships no direction of this digest" in found


def test_values_in_units_of_the_maximum() -> None:
    compiled = policy("""
        rules:
        - {id: a, clamp: {features: [{sae: first, index: 3}], value: 0.5, unit: max_activation}}
        - id: b
          when: {if: {feature: {sae: first, index: 5}, below: 0.25, unit: max_activation}}
          stop: {}
    """)
    assert compiled.rules["a"].claims[0].value == 0.5 * 4.0
    condition = compiled.rules["b"].condition
    assert condition is not None
    assert (condition.expression.threshold, condition.expression.above) == (0.5, False)  # type: ignore[union-attr]


def test_everything_that_is_wrong_is_told_at_once_with_its_place() -> None:
    part = """
        rules:
        - {id: a, ban: {features: [{sae: nowhere, index: 1}, {sae: first, index: 48}]}}
        - id: b
          when: {if: {all: [{feature: {sae: first, label: odd}, above: 1}, {feature: {index: 1}, above: 1}]}}
          stop: {}
        allow:
        - id: c
          ops: [clamp]
          features: [{sae: first, where: {subject: gone}}]
          sites: [nowhere, layers.0.mlp_out]
        protect:
        - {id: d, directions: [{file: directions/x.safetensors}]}
    """
    with pytest.raises(CompileError) as caught:
        compile_policy(bundle(parts=[part]), WORLD)
    told = {each.path: (each.file, each.line) for each in caught.value.problems}
    assert told == {
        "rules.a.ban.features[0].sae": ("rules/part0.yaml", 4),
        "rules.a.ban.features[1].index": ("rules/part0.yaml", 4),
        "rules.b.when.if.all[0].feature.label": ("rules/part0.yaml", 5),
        "rules.b.when.if.all[1].feature.sae": ("rules/part0.yaml", 5),
        "allow.c.features[0].where": ("rules/part0.yaml", 9),
        "allow.c.sites[0]": ("rules/part0.yaml", 9),
        "allow.c.sites[1]": ("rules/part0.yaml", 9),
        "protect.d.directions[0].file": ("rules/part0.yaml", 14),
    }


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            "clamp: {features: [{index: 10}], value: 1, unit: max_activation}",
            "no largest activation is recorded",
        ),
        (
            "cap: {features: [{index: 20}], value: 1, unit: max_activation}",
            "no largest activation is recorded",
        ),
        ("clamp: {features: [{index: 3}], value: 9e5, unit: max_activation}", "must lie between"),
        (
            "clamp: {directions: [{file: directions/all.safetensors}], value: 1, unit: max_activation}",
            "a direction has no maximum",
        ),
        ("ban: {directions: [{file: directions/all.safetensors, tensor: w}]}", "no tensor 'w'"),
        ("ban: {features: [{label: twins}]}", "2 features"),
    ],
)
def test_values_and_names_that_mean_nothing(rule: str, words: str) -> None:
    text = f"rules: [{{id: a, {rule.replace('{index', '{sae: first, index')}}}]"
    (found,) = problems(text, where=ONE_SITE, directions={"v": torch.ones(tiny.WIDTH)})
    assert words in found


def test_a_direction_of_another_width_and_several_tensors() -> None:
    text = "rules: [{id: a, ban: {directions: [{file: directions/all.safetensors, tensor: v}]}}]"
    (found,) = problems(text, where=ONE_SITE, directions={"v": torch.ones(5)})
    assert "has the shape [5], not [32]" in found
    several = text.replace(", tensor: v", "")
    (found,) = problems(
        several, where=ONE_SITE, directions={"v": torch.ones(tiny.WIDTH), "w": torch.ones(tiny.WIDTH)}
    )
    assert "holds several tensors; name one" in found
    (found,) = problems(text, directions={"v": torch.ones(tiny.WIDTH)})
    assert "must be given for a direction" in found


TO = "to: {feature: {sae: first, index: 5}}"
#: What contradicts a redirect of the same feature to feature 5, by 1, at strength 0 above 0.
BESIDE_A_REDIRECT = (
    "clamp: {F, value: 0}",
    "clamp: {F, value: 0, if_active: true, phase: prompt}",
    "cap: {F, value: 9}",
    "floor: {F, value: -9, unit: norm_fraction}",
    "scale: {F, factor: 1}",
    f"redirect: {{F, {TO}, factor: 2}}",
    f"redirect: {{F, {TO}, factor: 1, strength: 1}}",
    f"redirect: {{F, {TO}, factor: 1, threshold: 1, phase: completion}}",
    "redirect: {F, to: {feature: {sae: first, index: 6}}, factor: 1}",
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("clamp: {F, value: 1}", "clamp: {F, value: 2}"),
        ("clamp: {F, value: 1}", "clamp: {F, value: 1, if_active: true}"),
        ("clamp: {F, value: 1}", "scale: {F, factor: 2}"),
        ("scale: {F, factor: 1}", "scale: {F, factor: 2, phase: prompt}"),
        ("cap: {F, value: 1}", "cap: {F, value: 1, unit: norm_fraction}"),
        ("clamp: {F, value: 1, if_active: true}", "cap: {F, value: -1}"),
        *((f"redirect: {{F, {TO}, factor: 1}}", other) for other in BESIDE_A_REDIRECT),
    ],
)
def test_rules_that_contradict_each_other(one: str, other: str) -> None:
    target = "features: [{sae: first, index: 3}]"
    text = f"rules: [{{id: a, {one}}}, {{id: b, {other}}}]".replace("F", target)
    (found,) = problems(text)
    assert found.startswith("rules.a, rules.b: p/a and p/b contradict each other on first:3 (the red bridge)")


REDIRECT = f"redirect: {{F, {TO}, factor: 1}}"
WHEN = "when: {if: {feature: {sae: first, index: 5}, above: 1}}"


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("ban: {F}", f"{WHEN}, ban: {{F, strength: 1}}", "would act always"),
        ("ban: {F, phase: prompt}", f"{WHEN}, ban: {{F, phase: completion}}", "would act always"),
        ("cap: {F, value: 2}", f"{WHEN}, cap: {{F, value: 1}}", "would act always"),
        ("scale: {F, factor: 2}", f"{WHEN}, cap: {{F, value: 1}}", "would act always"),
        ("cap: {F, value: 2}", f"{WHEN}, clamp: {{F, value: 1}}", "would add up"),
        (f"{WHEN}, cap: {{F, value: 2}}", f"{WHEN}, cap: {{F, value: 1}}", "would add up"),
        (REDIRECT, f"{WHEN}, cap: {{F, value: 1}}", "and cap at 1"),
        (f"{WHEN}, {REDIRECT}", "scale: {F, factor: 2}", "and scale by 2"),
        (f"{WHEN}, {REDIRECT}", f"{WHEN}, {REDIRECT}", "would add up"),
    ],
)
def test_conditions_that_cannot_be_kept_apart(one: str, other: str, words: str) -> None:
    target = "features: [{sae: first, index: 3}]"
    text = f"rules: [{{id: a, {one}}}, {{id: b, {other}}}]".replace("F", target)
    (found,) = problems(text)
    assert words in found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("clamp: {F, value: 1, phase: prompt}", "clamp: {F, value: 2, phase: completion}"),
        ("clamp: {F, value: 1}", "mode: audit, clamp: {F, value: 2}"),
        ("cap: {F, value: 1}", "ban: {F}"),
        ("ban: {F, strength: 2}", f"{WHEN}, ban: {{F, strength: 1}}"),
        (REDIRECT, REDIRECT),
        (REDIRECT, "ban: {F, strength: 2}"),
        (f"{WHEN}, {REDIRECT}", REDIRECT),
        (f"{WHEN}, {REDIRECT}", "ban: {F}"),
        (REDIRECT, "mode: audit, scale: {F, factor: 2}"),
        (f"redirect: {{F, {TO}, factor: 1, phase: prompt}}", "scale: {F, factor: 2, phase: completion}"),
        (REDIRECT, "redirect: {features: [{sae: first, index: 4}], " + TO + ", factor: 9}"),
        # What is written may be capped, scaled, and redirected itself: each reads what the request left.
        (REDIRECT, "cap: {features: [{sae: first, index: 5}], value: 1}"),
        (REDIRECT, "scale: {features: [{sae: first, index: 5}], factor: 2}"),
        (
            REDIRECT,
            "redirect: {features: [{sae: first, index: 5}], factor: 1, "
            "to: {feature: {sae: first, index: 3}}}",
        ),
        (REDIRECT, "mode: shadow, ban: {features: [{sae: first, index: 5}]}"),
    ],
)
def test_rules_that_go_together(one: str, other: str) -> None:
    target = "features: [{sae: first, index: 3}]"
    policy(f"rules: [{{id: a, {one}}}, {{id: b, {other}}}]".replace("F", target))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("ban: {T}", "the first bans what the second redirects to"),
        (f"{WHEN}, ban: {{T, strength: 1, phase: prompt}}", "the first bans what the second redirects to"),
        ("clamp: {T, value: 1}", "the first holds at a value what the second redirects to"),
        ("clamp: {T, value: 0, if_active: true}", "the first holds at a value what the second redirects to"),
    ],
)
def test_nothing_takes_back_what_a_redirect_writes(other: str, words: str) -> None:
    target, written = "features: [{sae: first, index: 3}]", "features: [{sae: first, index: 5}]"
    text = f"rules: [{{id: a, {REDIRECT}}}, {{id: b, {other}}}]".replace("F", target).replace("T", written)
    (found,) = problems(text)
    assert found.startswith("rules.b, rules.a: p/b and p/a contradict each other on first:5 (a river)")
    assert words in found


@pytest.mark.parametrize(
    ("rule", "path", "words"),
    [
        ("F, factor: 1, to: {feature: {sae: first, index: 48}}", ".to.feature.index", "features 0 to 47"),
        ("F, factor: 1, to: {feature: {sae: first, label: twins}}", ".to.feature.label", "2 features"),
        ("F, factor: 1, to: {feature: {sae: second, index: 1}}", ".to", "second:1 is at layers.1.resid_post"),
        ("F, factor: 1, to: {direction: {file: directions/x.safetensors}}", ".to.direction.file", "not in"),
        (
            "F, factor: 1, to: {direction: {file: directions/all.safetensors, site: layers.1}}",
            ".to",
            "and what is redirected is at layers.0.resid_post",
        ),
        (
            "F, factor: 1, unit: max_activation, to: {feature: {sae: first, index: 10}}",
            ".unit",
            "no largest activation is recorded for first:10",
        ),
        (
            "F, factor: 1, unit: max_activation, to: {direction: {file: directions/all.safetensors}}",
            ".unit",
            "a direction has no maximum",
        ),
        (
            "features: [{sae: first, index: 10}], factor: 1, unit: max_activation, "
            "to: {feature: {sae: first, index: 3}}",
            ".unit",
            "no largest activation is recorded for first:10",
        ),
        (
            "F, factor: 1, threshold: 300000, unit: max_activation, to: {feature: {sae: first, index: 5}}",
            ".threshold",
            "must lie between",
        ),
        (
            "features: [{sae: first, index: 5}], factor: 600000, unit: max_activation, "
            "to: {feature: {sae: first, index: 3}}",
            ".factor",
            "must lie between",
        ),
    ],
)
def test_a_redirect_that_means_nothing(rule: str, path: str, words: str) -> None:
    target = "features: [{sae: first, index: 3}]"
    text = f"rules: [{{id: a, redirect: {{{rule.replace('F,', f'{target},')}}}}}]"
    (found,) = problems(text, directions={"v": torch.ones(tiny.WIDTH)})
    assert found.startswith(f"rules.a.redirect{path}: ")
    assert words in found


@pytest.mark.parametrize("mode", ["enforce", "audit"])
def test_a_ban_that_cannot_be_proven(mode: str) -> None:
    normalising = Catalog([LoadedSAE(tiny.sae("n", 3, Norm.LAYER_NORM), tiny.FIRST_SITE)])
    text = f"rules: [{{id: a, mode: {mode}, ban: {{features: [{{sae: n, index: 3}}]}}}}]"
    (found,) = problems(text, where=world(normalising))
    assert found.startswith("rules.a: ")
    assert "cannot be banned" in found


def test_bans_that_exclude_each_other() -> None:
    vector = torch.zeros(tiny.WIDTH)
    vector[0] = 1.0
    target = "{{file: directions/all.safetensors, tensor: {}}}"
    text = f"""
        rules:
        - {{id: up, ban: {{directions: [{target.format("v")}]}}}}
        - {{id: down, ban: {{directions: [{target.format("w")}]}}}}
    """
    where = World(
        "tiny", ONE_SITE.sites, Widths(tiny.WIDTH), ONE_SITE.catalog, WORLD.capacity, torch.bfloat16
    )
    (found,) = problems(text, where=where, directions={"v": vector, "w": -vector})
    assert found.startswith("rules.down, rules.up: these oppose each other, so that rounding to bfloat16")


def test_more_rows_than_there_is_room_for_when_every_condition_holds() -> None:
    text = f"""
        rules:
        - {{id: a, ban: {{features: [{{sae: first, indices: [1, 2, 3]}}]}}}}
        - {{id: b, {WHEN}, ban: {{features: [{{sae: first, indices: [4, 6]}}]}}}}
    """
    policy(text, world=world(bans=5))
    (found,) = problems(text, where=world(bans=4))
    assert found.startswith("rules.a, rules.b: 5 bans at layers.0.resid_post")


def test_more_readings_than_there_is_room_for() -> None:
    text = f"""
        rules:
        - {{id: a, watch: {{features: [{{sae: first, indices: [1, 2, 3]}}]}}}}
        - {{id: b, {WHEN}, stop: {{}}}}
    """
    policy(text, world=world(watches=4))
    (found,) = problems(text, where=world(watches=3))
    assert found.startswith("rules.a, rules.b: ")
    assert "room for 3" in found


@pytest.mark.parametrize(
    ("reads", "acts", "over", "fits"),
    [
        ("first", "second", "token", True),
        ("second", "second", "token", True),
        ("second", "first", "token", False),
        ("second", "first", "window, window: 4", False),
        ("second", "first", "prompt", True),
    ],
)
def test_rows_act_where_their_condition_reads_or_later(reads: str, acts: str, over: str, fits: bool) -> None:
    """A condition over an answer's tokens is evaluated as the token passes through the model."""
    when = f"when: {{if: {{feature: {{sae: {reads}, index: 5}}, above: 1}}, over: {over}}}"
    text = f"rules: [{{id: a, {when}, ban: {{features: [{{sae: {acts}, index: 1}}]}}}}]"
    if fits:
        policy(text)
    else:
        (found,) = problems(text)
        place = (
            "acts at layers.0.resid_post, which comes before layers.1.resid_post, where its condition reads"
        )
        assert found.startswith(f"rules.a: p/a {place}: let it read there or earlier")


def test_more_conditions_than_there_is_room_for() -> None:
    rules = ", ".join(f"{{id: {name}, {WHEN}, stop: {{}}}}" for name in "abc")
    policy(f"rules: [{rules}]", world=world(conditions=3))
    (found,) = problems(f"rules: [{rules}]", where=world(conditions=2))
    assert found.startswith("rules.a, rules.b, rules.c: 3 conditions; this server has room for 2 (its")


def test_a_bound_on_edits_does_not_go_with_bans_of_the_request() -> None:
    (found,) = problems("allow: [{id: a, ops: [clamp, ban]}]\nlimits: {max_relative_norm: 0.5}")
    assert found.startswith("allow.a.ops: ")
    (found,) = problems("limits: {max_relative_norm: 1e7}")
    assert found.startswith("limits.max_relative_norm: ")
