"""Tests of what a chat keeps between turns."""

from pathlib import Path

import pytest

import saegis
from saegis.cli.chat_session import COMMANDS, ChatSession
from saegis.cli.edits import EditSyntaxError


def test_edits_gather_and_a_new_one_of_the_same_feature_takes_the_place_of_the_old() -> None:
    session = ChatSession()
    assert session.command("/clamp 12=3.5") == "in force: clamp 12=3.5"
    assert session.command("/ban poison") == "in force: clamp 12=3.5, ban poison=0"
    assert session.command("/clamp 12=2max") == "in force: ban poison=0, clamp 12=2max"
    assert session.edits == [saegis.ban("poison"), saegis.clamp(12, 2, unit="max_activation")]


def test_reset_takes_steering_back_and_clear_the_conversation() -> None:
    session = ChatSession()
    session.command("/system Be brief.")
    session.command("/watch 7")
    session.command("/scale 7=0.5")
    session.say("Hello")
    session.answered("Hi")
    assert session.command("/steering") == "in force: scale 7=0.5, watch 7"
    assert session.watches == [saegis.watch(7)]
    assert session.command("/reset") == "nothing is in force: unsteered"
    assert (session.edits, session.watches, session.watched) == ([], [], [])
    assert len(session.messages) == 3
    session.command("/clear")
    assert session.messages == [{"role": "system", "content": "Be brief."}]


def test_unset_takes_back_one_features_steering_and_watch_or_all() -> None:
    session = ChatSession()
    for line in ("/clamp 12=3.5", "/ban the red bridge", "/watch 12", "/watch the red bridge"):
        session.command(line)
    before = session.in_force()
    assert session.command("/unset 12") == "in force: ban the red bridge=0, watch the red bridge"
    assert session.watches == [saegis.watch("the red bridge")]
    with pytest.raises(EditSyntaxError, match="nothing of '12' is in force"):
        session.command("/unset 12")
    assert not session.in_force().adds_to(before)
    assert before.adds_to(session.in_force())
    assert session.command("/unset the red bridge") == "nothing is in force: unsteered"
    session.restore(before)
    assert session.in_force() == before
    assert session.command("/unset") == "nothing is in force: unsteered"


def test_a_label_takes_back_the_feature_that_it_stood_for() -> None:
    session = ChatSession()
    for line in ("/clamp the red bridge=3.5", "/watch the red bridge", "/ban 12"):
        session.command(line)
    session.replace_labels([saegis.clamp(17, 3.5), saegis.ban(12)], [saegis.watch(17)])
    assert session.command("/unset the red bridge") == "in force: ban 12=0"


def test_a_failed_call_takes_only_the_users_message_back() -> None:
    session = ChatSession()
    session.say("one")
    session.answered("two")
    session.say("three")
    session.unsay()
    session.unsay()
    assert [message["content"] for message in session.messages] == ["one", "two"]


def test_help_lists_every_command_and_each_is_understood() -> None:
    told = ChatSession().command("/help")
    for command in COMMANDS:
        assert command in told
        name = command.partition(" ")[0]
        ways = {"=TO": " 1=2:1", "=": " 1=1", "TARGET": " 1", "FILE": f" {__file__}"}
        argument = next((written for form, written in ways.items() if form in command), "")
        session = ChatSession()
        session.command("/ban 1")
        session.command(name + argument)


@pytest.mark.parametrize("line", ["/clamp", "/clamp 12", "/ban", "/watch", "/dance", "/"])
def test_what_is_not_understood_changes_nothing(line: str) -> None:
    session = ChatSession()
    with pytest.raises(EditSyntaxError):
        session.command(line)
    assert session == ChatSession()


@pytest.mark.parametrize("line", ["/quit", "/exit"])
def test_it_ends_when_asked(line: str) -> None:
    session = ChatSession()
    session.command(line)
    assert session.ended


def test_features_belong_to_the_sae_of_the_session() -> None:
    session = ChatSession(sae="second")
    session.command("/ban 3")
    assert session.edits[0].target == saegis.feature(3, sae="second")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('/ban "17=2"', saegis.ban(17, 2.0)),
        ("/ban '17'", saegis.ban(17)),
        ('/clamp "the red bridge=2max"', saegis.clamp("the red bridge", 2, unit="max_activation")),
        ('/clamp "the red bridge"=2', saegis.clamp("the red bridge", 2, unit="feature")),
        ("/ban token ','=2", saegis.ban("token ','", 2.0)),
    ],
)
def test_quotes_as_a_shell_wants_them_are_no_part_of_a_label(written: str, meant: saegis.Edit) -> None:
    session = ChatSession()
    session.command(written)
    assert session.edits == [meant]


def test_a_picture_goes_with_the_next_message_alone(tmp_path: Path) -> None:
    session, file = ChatSession(), tmp_path / "bridge.png"
    file.write_bytes(b"picture")
    assert session.command(f"/image {file}") == "with the next message: a picture"
    assert session.command(f"/image {file}") == "with the next message: 2 pictures"
    session.say("What is this?")
    session.say("And this?")
    shown = saegis.Image(b"picture")
    assert [each["content"] for each in session.messages] == [[shown, shown, "What is this?"], "And this?"]
    with pytest.raises(EditSyntaxError, match="cannot be read"):
        session.command(f"/image {tmp_path / 'missing.png'}")
