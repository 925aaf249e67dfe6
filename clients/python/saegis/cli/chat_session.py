"""A conversation and the steering in force: what `saegis chat` keeps between turns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from saegis import ChatMessage, Edit, FeatureRef, Image, Watch, image
from saegis.cli.edits import OPERATIONS, EditSyntaxError, describe_edit, parse_edit, parse_target

_EXAMPLES = {"clamp": ": /clamp 1785=50, /clamp bread=0.8max"}
COMMANDS = {
    **{
        # The first phrase of the option's help.
        f"/{name} {form.metavar}": re.split("[.:;]", form.help[:1].lower() + form.help[1:])[0]
        + _EXAMPLES.get(name, "")
        for name, form in OPERATIONS.items()
    },
    "/watch TARGET": "report a feature's value after each answer",
    "/steering": "show what is in force",
    "/unset TARGET": "take back a feature's steering and watch; without TARGET all, as /reset does",
    "/reset": "take back all steering and watches",
    "/image FILE": "show a picture with the next message",
    "/clear": "forget the conversation",
    "/system TEXT": "set the system message and forget the conversation",
    "/help": "show this",
    "/quit": "end; so does Ctrl-D",
}
#: A target in quotes, as in a shell. In a chat the quotes would become part of the label.
_QUOTED = re.compile(r"""^(["'])(.*)\1(=\S*)?$""")


@dataclass(frozen=True)
class InForce:
    """The edits, and the watches with their written forms."""

    edits: tuple[Edit, ...]
    watched: tuple[str, ...]
    watches: tuple[Watch, ...]

    def adds_to(self, before: InForce) -> bool:
        """Whether it has an edit or a watch that `before` has not."""
        return not (set(self.edits) <= set(before.edits) and set(self.watches) <= set(before.watches))


@dataclass
class ChatSession:
    """The conversation so far, its steering and its watches."""

    sae: str = ""
    messages: list[ChatMessage] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    ended: bool = False
    pictures: list[Image] = field(default_factory=list)
    _by_label: dict[FeatureRef, FeatureRef] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Add the user's message, with the pictures that were given for it."""
        shown, self.pictures = self.pictures, []
        self.messages.append({"role": "user", "content": [*shown, text] if shown else text})

    def answered(self, text: str) -> None:
        """Add the model's answer."""
        self.messages.append({"role": "assistant", "content": text})

    def unsay(self) -> None:
        """Take the user's last message back, after a call that failed."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def command(self, line: str) -> str:
        """Do the command of a line that begins with `/`; returns what to print. Raises EditSyntaxError."""
        name, _, rest = line.strip().removeprefix("/").partition(" ")
        rest = rest.strip()
        named = _QUOTED.sub(r"\2\3", rest)
        if name in OPERATIONS:
            edit = parse_edit(name, named, sae=self.sae)
            self.edits = [kept for kept in self.edits if kept.target != edit.target] + [edit]
            return self.steering()
        if name == "watch":
            self.watches.append(Watch(parse_target(named, self.sae)))
            self.watched.append(named)
            return self.steering()
        simple = {
            "steering": self.steering,
            "unset": self._reset,
            "reset": self._reset,
            "clear": self._clear,
            "help": _help,
            "quit": self._quit,
            "exit": self._quit,
        }
        if name == "image":
            return self._show(named)
        if name == "system":
            self.messages = [{"role": "system", "content": rest}] if rest else []
            return "the conversation starts anew"
        if name == "unset" and rest:
            return self._unset(named)
        if name not in simple:
            raise EditSyntaxError(f"there is no command /{name}; /help lists them")
        return simple[name]()

    def steering(self) -> str:
        """What is in force, in one line."""
        parts = [describe_edit(edit) for edit in self.edits] + [f"watch {name}" for name in self.watched]
        return f"in force: {', '.join(parts)}" if parts else "nothing is in force: unsteered"

    def in_force(self) -> InForce:
        """The present steering and watches."""
        return InForce(tuple(self.edits), tuple(self.watched), tuple(self.watches))

    def restore(self, before: InForce) -> None:
        """Restore earlier steering and watches."""
        self.edits, self.watched = list(before.edits), list(before.watched)
        self.watches = list(before.watches)

    def replace_labels(self, edits: list[Edit], watches: list[Watch]) -> None:
        """Replace edits and watches by label with those by index, in the same order.

        Of two edits of one feature the later one counts. `/unset` still knows the label.
        """
        targets = [(old.target, new.target) for old, new in zip(self.edits, edits, strict=True)]
        targets += [(old.target, new.target) for old, new in zip(self.watches, watches, strict=True)]
        for before, now in targets:
            if isinstance(before, FeatureRef) and isinstance(now, FeatureRef):
                self._by_label[before] = now
        self.edits, self.watches = list({edit.target: edit for edit in edits}.values()), watches

    def _show(self, path: str) -> str:
        """Keep a picture for the next message."""
        try:
            self.pictures.append(image(path))
        except (OSError, ValueError) as error:
            raise EditSyntaxError(f"{path or 'no file'} cannot be read: {error}") from error
        many = len(self.pictures)
        return f"with the next message: {'a picture' if many == 1 else f'{many} pictures'}"

    def _unset(self, written: str) -> str:
        target = parse_target(written, self.sae)
        if isinstance(target, FeatureRef):
            target = self._by_label.get(target, target)
        edits = [edit for edit in self.edits if edit.target != target]
        watched = [
            (name, watch)
            for name, watch in zip(self.watched, self.watches, strict=True)
            if target != watch.target and name != written
        ]
        if len(edits) + len(watched) == len(self.edits) + len(self.watches):
            raise EditSyntaxError(f"nothing of {written!r} is in force; /steering shows what is")
        self.edits = edits
        self.watched, self.watches = [name for name, _ in watched], [watch for _, watch in watched]
        return self.steering()

    def _reset(self) -> str:
        self.edits, self.watches, self.watched = [], [], []
        return self.steering()

    def _clear(self) -> str:
        self.pictures = []
        self.messages = [message for message in self.messages if message["role"] == "system"]
        return "the conversation starts anew"

    def _quit(self) -> str:
        self.ended = True
        return ""


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(f"{command:<{width}}  {what}" for command, what in COMMANDS.items())
