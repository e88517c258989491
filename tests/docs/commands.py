"""Which test covers each command line that README.md and docs show.

Keys are regular expressions that match a whole command line, values are test files. A command of
the documentation that no key matches fails, and so does a key that no command matches.
"""

COMMANDS: dict[str, str] = {}
