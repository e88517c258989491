"""The runner of the documentation, on sample files."""

import traceback

import pytest

from tests.docs.blocks import DocumentError, commands, run_python, uncovered

GOOD = """
# Title

```python
x = 1
```

1. In a list:
   ```python
   assert x == 1
   x += 1
   ```

~~~text
x = (
~~~

```bash
# a comment
make test
memtx factories copy \\
    parts stacks
```

```console
$ memtx factories list
parts  Small parts.
```
"""


@pytest.fixture
def document(tmp_path):
    def write(text):
        path = tmp_path / "sample.md"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_blocks_run_in_one_namespace(document):
    assert run_python(document(GOOD)) == 2


def test_a_failing_block_fails_at_its_line(document):
    text = "text\n\n```python\nx = 1\n```\n\n```python\ny = 2\nraise KeyError(x)\n```\n"
    with pytest.raises(KeyError) as caught:
        run_python(document(text))
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename.endswith("sample.md"), last.lineno) == (True, 9)


def test_a_comment_does_not_hide_a_block(document):
    with pytest.raises(ZeroDivisionError):
        run_python(document("<!-- not run: slow -->\n```python\n1 / 0\n```\n"))


@pytest.mark.parametrize("language", ["", "py", "pycon", "sh", "Python"])
def test_an_unknown_language_fails(document, language):
    with pytest.raises(DocumentError, match=f"got language='{language}'"):
        run_python(document(f"```{language}\nx\n```\n"))


def test_a_block_without_an_end_fails(document):
    with pytest.raises(DocumentError, match=r"sample.md:2: .* no closing fence"):
        run_python(document("\n```python\nx = 1\n"))


def test_commands_are_joined_and_outputs_left_out(document):
    assert commands(document(GOOD)) == [
        (20, "make test"),
        (21, "memtx factories copy parts stacks"),
        (26, "memtx factories list"),
    ]


def test_a_command_without_an_end_fails(document):
    with pytest.raises(DocumentError, match="a command must end"):
        commands(document("```bash\nmake \\\n```\n"))


def test_an_unlisted_command_is_reported(document):
    path = document(GOOD)
    table = {r"make test": "a", r"memtx factories .*": "b"}
    assert uncovered(path, table) == []
    (found,) = uncovered(path, {r"make": "a", r"memtx factories .*": "b"})
    assert found.startswith("sample.md:20: no test covers `make test`")
