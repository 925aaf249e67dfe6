"""Bodies: reads JSON that a client wrote, strictly and with bounds, and the contract's messages from it."""

import re
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from saegis_server.engine.api import FieldError
from saegis_server.http.shape import check_message, told
from saegis_server.json_text import parse_json
from saegis_server.rpc.wire.problems import MalformedRequestError

Made = TypeVar("Made", bound=Message)
#: The most values of a body, those within others included: parsing blocks the event loop for each of them.
MOST_VALUES = 2**19
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
#: What protobuf says of the place of a fault, and before what is wrong there.
_AT = re.compile(r' at "?\w+((?:[.\[][\w.\[\]]*)?)"?\.*\Z')
_PARSING = re.compile(r"\A(Failed to parse \w+ field: )+")


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises MalformedRequestError."""
    if _values(data) > MOST_VALUES:
        raise MalformedRequestError(f"the body has more than {MOST_VALUES} values")
    try:
        value = parse_json(data.decode("utf-8"))
    except RecursionError:
        raise MalformedRequestError("the body is nested too deeply") from None
    except ValueError as error:
        raise MalformedRequestError(f"the body is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedRequestError("the body must be a JSON object")
    return value


def _values(data: bytes) -> int:
    """At least how many values a JSON text has."""

    def count(text: bytes) -> int:
        return sum(map(text.count, (b",", b"{", b"[")))

    # Only what has that many commas is looked at more closely: most of them are of texts.
    return most if (most := count(data)) <= MOST_VALUES else count(_STRING.sub(b"", data))


def message_of(kind: type[Made], value: object, path: str) -> Made:
    """The message of a JSON value at `path`, in protobuf's own JSON. Raises FieldError."""
    if not isinstance(value, dict):
        raise FieldError(path, f"must be an object, not {told(value)}")
    message = kind()
    try:
        check_message(value, cast(Descriptor, kind.DESCRIPTOR), path)
        ParseDict(value, message)
    except FieldError:
        raise
    except (ParseError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        place, description = _fault(str(error))
        raise FieldError(path + place if path else place.removeprefix(".") or "body", description) from error
    return message


def _fault(said: str) -> tuple[str, str]:
    """Where in a message protobuf found a fault, and which."""
    first = said.partition("\n")[0]
    found = _AT.search(first)
    described = first[: found.start()] if found else first
    return (found[1].rstrip(".") if found else ""), _PARSING.sub("", described).rstrip(".")


def number(path: str, value: object) -> float:
    """A number of a body. Raises FieldError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(path, f"must be a number, not {told(value)}")
    try:
        return float(value)
    except OverflowError:
        raise FieldError(path, "is too large") from None


def integer(path: str, value: object) -> int:
    """A whole number of a body. Raises FieldError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise FieldError(path, f"must be a whole number, not {told(value)}")
    return value


def boolean(path: str, value: object) -> bool:
    """A truth value of a body. Raises FieldError."""
    if not isinstance(value, bool):
        raise FieldError(path, f"must be true or false, not {told(value)}")
    return value


def text(path: str, value: object) -> str:
    """A string of a body. Raises FieldError."""
    if not isinstance(value, str):
        raise FieldError(path, f"must be a string, not {told(value)}")
    return value


def listed(path: str, value: object) -> list[Any]:
    """An array of a body. Raises FieldError."""
    if not isinstance(value, list):
        raise FieldError(path, f"must be an array, not {told(value)}")
    return value


def mapping(path: str, value: object) -> dict[str, Any]:
    """An object of a body. Raises FieldError."""
    if not isinstance(value, dict):
        raise FieldError(path, f"must be an object, not {told(value)}")
    return value
