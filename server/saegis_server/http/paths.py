"""Paths: what the fields of the contract's request are called in the JSON body that it was read from."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

#: An edit or a watch of the contract's request, and what follows it.
_PLACE = re.compile(r"steering\.(edits|watches)\[(\d+)\](.*)", re.DOTALL)


@dataclass(slots=True)
class Paths:
    """The body's names of the request's fields, so that errors name what the client wrote.

    edits, watches: where each of the request's edits and watches stands in the body. An entry that ends with
    a colon is no message of the contract, so that nothing within it is named.
    """

    names: dict[str, str] = field(default_factory=dict)
    edits: list[str] = field(default_factory=list)
    watches: list[str] = field(default_factory=list)

    def of(self, path: str) -> str:
        """What the body calls the field that the contract's request calls `path`."""
        path = path.removeprefix("request.")
        if (match := _PLACE.fullmatch(path)) is not None:
            places = self.edits if match[1] == "edits" else self.watches
            if (number := int(match[2])) < len(places):
                place = places[number]
                return place.removesuffix(":") if place.endswith(":") else place + match[3]
        begins = (name for name in self.names if path == name or path.startswith((f"{name}.", f"{name}[")))
        longest = max(begins, key=len, default="")
        return self.names[longest] + path[len(longest) :] if longest else path

    def told(self, message: str, paths: Iterable[str]) -> str:
        """A message that begins with the path of a field, with the body's name of it."""
        for path in paths:
            if path and message.startswith(f"{path}: "):
                return self.of(path) + message[len(path) :]
        return message
