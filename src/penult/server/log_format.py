"""Log formatters: plain text, or JSON objects."""

import json
import logging
import sys


class Plain(logging.Formatter):
    """Formatter of plain text, one line per event."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line = getattr(record, "request", None)
        if line is not None:
            head = f"{line['method']} {line['path']} {line['status']} {line['ms']} ms"
            rest = "".join(
                f" {name}={line[name]}" for name in ("texts", "tokens", "truncated", "reason", "client") if line[name]
            )
            record = logging.makeLogRecord({**record.__dict__, "msg": head + rest, "args": None})
        return super().format(record)


class Json(logging.Formatter):
    """Formatter of JSON, one object per event."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        line |= getattr(record, "request", None) or {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_log(*, as_json: bool) -> None:
    """Log to standard error, one line per event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if as_json else Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines contain full URLs
