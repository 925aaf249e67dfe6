"""What two bundles say otherwise: by example, and by properties of any two."""

from hypothesis import given
from hypothesis import strategies as st

from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.difference import Change, by_entry, differences
from tests.policy import made
from tests.policy.bundles import CASES, POLICY, bundle_files, direction


def bundle(**changed: bytes | None) -> Bundle:
    """The sample bundle with files changed or, where None, left out; `policy_yaml` stands for policy.yaml."""
    files = bundle_files()
    for name, data in changed.items():
        path = next(each for each in files if each.replace("/", "_").replace(".", "_") == name)
        files[path] = data if data is not None else b""
        if data is None:
            del files[path]
    return Bundle.from_files(files)


def with_policy(*pairs: tuple[str, str]) -> Bundle:
    text = POLICY
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return bundle(policy_yaml=text.encode())


def changes(old: Bundle, new: Bundle) -> list[tuple[str, str, str, object, object]]:
    return [(each.section, each.id, each.key, each.before, each.after) for each in differences(old, new)]


def test_equal_bundles_do_not_differ_however_they_are_written() -> None:
    assert differences(bundle(), bundle(calibration_json=None, README_md=None)) == ()
    reordered = (
        ("ops: [clamp, scale]", "ops: [scale, clamp]"),
        ("        - index: 7\n", ""),
        ("min_precision: 0.5}\n", "min_precision: 0.5}\n        - index: 7\n"),
        ("limits: {max_edits: 4,", "mode: enforce\nlimits: {after_bans: false, max_edits: 4,"),
    )
    assert differences(bundle(), with_policy(*reordered)) == ()


def test_every_change_has_its_place() -> None:
    new = with_policy(
        ("serial: 3", "serial: 4"),
        ("tenants: [acme]", "tenants: [acme, globex]\n  roles: [use]"),
        ("strength: 2", "strength: 2.5"),
        ("index: 7", "index: 8"),
        ("window: 8", "window: 16"),
        ("max: 4}", "max: 5}"),
        ("max_edits: 4, ", ""),
    )
    assert changes(bundle(), new) == [
        ("policy", "", "serial", 3, 4),
        ("policy", "", "match.tenants", None, ["globex"]),
        ("policy", "", "match.roles", ["*"], ["use"]),
        ("policy", "", "limits.max_edits", 4, None),
        ("rules", "no-poison", "ban.features[].index", 7, 8),
        ("rules", "no-poison", "ban.strength", 2.0, 2.5),
        ("rules", "stop-poison", "when.window", 8, 16),
        ("allow", "style", "max", 4.0, 5.0),
    ]


def test_entries_files_and_cases_come_and_go() -> None:
    new = bundle(
        rules_part_yaml=None,
        tests_cases_yaml=CASES.replace("tenant: other", "tenant: third").encode(),
        directions_calm_safetensors=direction(16),
    )
    found = differences(bundle(), new)
    assert [(each.kind, each.section, each.id, each.key) for each in found] == [
        ("removed", "rules", "less-river", ""),
        ("removed", "protect", "keep", ""),
        ("changed", "cases", "another tenant", "request.tenant"),
        ("changed", "directions", "calm.safetensors", "content"),
    ]
    back = differences(new, bundle())
    assert {each.kind for each in back} == {"added", "changed"}


def test_what_changes_is_told_by_entry() -> None:
    extra = "allow: [{id: style, ops: [clamp]}]\nprotect: [{id: keep, features: [{sae: first, index: 3}]}]"
    before, after = made.bundle(1, extra=extra), made.bundle(1, extra="limits: {max_edits: 2}")
    assert by_entry(before, after) == {
        "allow.style": "removed",
        "limits": "changed",
        "protect.keep": "removed",
    }
    assert by_entry(before, before) == {}
    files = made.files(1)
    files["policy.yaml"] = files["policy.yaml"].replace(b"strength: 1", b"strength: 4")
    assert by_entry(made.bundle(1), Bundle.from_files(files)) == {"rules.ban-1": "changed"}


LINES = (
    ("strength: 2", "strength: 3"),
    ("index: 7", "index: 9"),
    ("revision: ", "mode: audit\nrevision: "),
    ("stop: {}", "record: {}"),
    ("description: Nothing about poison.", "description: Much."),
    ("max_relative_norm: 0.5", "max_relative_norm: 0.25"),
    ("reason: It is harmful.", "reason: It is bad."),
)
texts = st.sets(st.sampled_from(LINES)).map(lambda chosen: with_policy(*sorted(chosen)))


@given(texts, texts)
def test_two_bundles_differ_as_their_policies_do_and_the_other_way_round(one: Bundle, other: Bundle) -> None:
    found = differences(one, other)
    assert bool(found) == (one.policy != other.policy)
    swapped = [Change(each.section, each.id, each.key, each.after, each.before) for each in found]
    key = lambda each: (each.section, each.id, each.key)  # noqa: E731
    assert sorted(differences(other, one), key=key) == sorted(swapped, key=key)
