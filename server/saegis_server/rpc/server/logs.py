"""The log: lines of text or JSON objects on standard error, which tell the request that they are about."""

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

#: The id of the RPC that runs in this task: the caller's request_id if it is usable.
request_id: ContextVar[str] = ContextVar("request_id")
#: The id of its trace, if it is traced.
trace_id: ContextVar[str] = ContextVar("trace_id", default="")
#: The attribute of a record that holds its fields; JSON has each under its own name.
FIELDS = "fields"
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def with_fields(**fields: object) -> Mapping[str, object]:
    """What to log a message with (as `extra`) so that JSON has these fields too."""
    return {FIELDS: fields}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object on one line.

    time (RFC 3339, UTC), level, logger and message are always there; request_id and trace_id where they are
    known, the record's own fields, and exception with its traceback where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, in ASCII, so that no character of a message can end it or forge another."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        told: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        ids = {"request_id": request_id.get(""), "trace_id": trace_id.get()}
        told |= {name: value for name, value in ids.items() if value}
        told |= {name: value for name, value in getattr(record, FIELDS, {}).items() if value is not None}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def set_up(level: str, as_json: bool) -> None:
    """Send the log of this process to standard error, unless it goes somewhere already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(_TEXT))
    logging.basicConfig(handlers=[handler], level=level.upper())
    # What libraries warn of must not stand between the objects.
    logging.captureWarnings(as_json)
