"""The wire: how much a message may hold before it is read as one, by method.

Reading a message blocks everybody for as long as it takes, and that goes with its fields and not with its
bytes: two million empty edits fit into 4 MB, and reading them takes the better part of a second.
"""

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import Default

from saegis_server.rpc.wire.problems import MalformedRequestError, MessageTooLargeError

#: The most fields of a message, those within others included.
MOST_FIELDS = 32768
#: The most bytes of a request that has neither prompts nor a bundle.
SMALL_MESSAGE_BYTES = 64 * 1024
#: The methods whose requests have them, and may be as large as the server is set to.
_LARGE = frozenset(
    f"/saegis.v1.{name}"
    for name in (
        "GenerationService/Generate",
        "GenerationService/StreamGenerate",
        "GenerationService/Score",
        "FeatureService/Inspect",
        "FeatureService/ContrastFeatures",
        "ModelService/Tokenize",
        "ModelService/Detokenize",
        "PolicyService/ValidatePolicy",
        "PolicyService/EvaluatePolicy",
        "PolicyService/PutPolicy",
    )
)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def needs_counting(method: str, data: bytes) -> bool:
    """Whether `check_message` has to count fields, which takes as long as a tenth of a second."""
    # A field has two bytes or more.
    return method in _LARGE and len(data) > 2 * MOST_FIELDS


def check_message(method: str, data: bytes) -> None:
    """Raise MessageTooLargeError or MalformedRequestError for a request that is more than it may be."""
    if method not in _LARGE and len(data) > SMALL_MESSAGE_BYTES:
        raise MessageTooLargeError(method, len(data), SMALL_MESSAGE_BYTES)
    if needs_counting(method, data):
        kind: Descriptor = Default().FindMethodByName(method.strip("/").replace("/", ".")).input_type
        if has_more_fields(data, kind, MOST_FIELDS):
            raise MalformedRequestError(f"the request has more than {MOST_FIELDS} fields")


def has_more_fields(data: bytes, kind: Descriptor, most: int) -> bool:
    """Whether a message of this kind has more than `most` fields, those within others included.

    What is no message is left to its reader: the count ends where it cannot be followed.
    """
    count = 0
    open_messages = [(0, len(data), kind)]
    while open_messages:
        at, end, message = open_messages.pop()
        fields = message.fields_by_number
        while at < end:
            count += 1
            if count > most:
                return True
            tag, at = _varint(data, at)
            wire = tag & 7
            if wire == _BYTES:
                length, at = _varint(data, at)
                field = fields.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    open_messages.append((at, min(at + length, end), field.message_type))
                at += length
            elif wire == _VARINT:
                _, at = _varint(data, at)
            else:
                at += {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
    return False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends; beyond the end of the data everything is 0."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return value, max(at, 1)
