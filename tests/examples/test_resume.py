"""examples/resume.py as a user starts it."""

import re

from tests.examples.processes import script, workplace
from tests.examples.scripts import refusal_of


def test_the_run_that_was_killed_ends_where_the_other_did(tmp_path):
    folder = workplace(tmp_path)
    ran = script("resume", ["--output", "out"], folder=folder)
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr
    assert "it ended with -9 and left step-00000008, step-00000012" in ran.stdout
    assert "losses equal to the last bit: True" in ran.stdout
    assert "weights equal to the last bit: True" in ran.stdout
    assert "steps that were done twice: 3 of 24" in ran.stdout
    rows = re.findall(r"^ +(\d+) +(\S+) +(\S+)$", ran.stdout, flags=re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(13, 25))
    assert all(one == other for _, one, other in rows)
    assert not (folder / "out").exists()


def test_an_output_that_is_taken_is_refused(monkeypatch, tmp_path):
    message = refusal_of(monkeypatch, "resume", ["--output", str(tmp_path)])
    assert message.startswith(f"resume: the output must be free, got folder='{tmp_path}';")
