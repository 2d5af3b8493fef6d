"""docs/server-limits.md states the options and their defaults."""

import re
from pathlib import Path

import pytest

from penult.deepsparse.command import main
from penult.server import Limits

PAGE = (Path(__file__).parents[2] / "docs" / "server-limits.md").read_text(encoding="utf-8")


def test_each_limit_is_on_the_page_with_its_default():
    """The table has a row for each limit, with its default."""
    rows = {match[1].replace("-", "_"): match[2] for match in re.finditer(r"\| `--([a-z-]+)` \| ([^|]+) \|", PAGE)}
    defaults = Limits()
    assert set(rows) == set(Limits.model_fields)
    for name, text in rows.items():
        assert int(re.match(r"[\d,]+", text)[0].replace(",", "")) == getattr(defaults, name), name
    assert f"| {defaults.max_client_batch_size + 65_536:,} |" in PAGE


def test_each_option_of_the_page_is_known(capsys, monkeypatch):
    """Every option on the page exists."""
    monkeypatch.setenv("COLUMNS", "200")
    main(["--help"])
    known = capsys.readouterr().out
    options = set(re.findall(r"--[a-z][a-z-]+", PAGE)) - {"--workers"}
    assert len(options) > 12
    assert not [option for option in options if option not in known]


@pytest.mark.parametrize("name", [name for name in Limits.model_fields if name != "max_bodies_in_flight"])
def test_each_limit_has_its_option(monkeypatch, name):
    """Each limit has an option of its name."""
    configs = []
    monkeypatch.setattr("penult.server.run.run", lambda config, _: configs.append(config))
    main(["m", f"--{name.replace('_', '-')}", "7"])
    assert configs[0].limits == Limits(**{name: 7})
