"""Programs for PATH that stand for gcloud, xpk and others: they write down how they are called."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FAKE = """#!/bin/bash
printf '%s\\0' "${{0##*/}}" "$@" $'\\n' >> {called}
[ ! -s {answers} ] || exec {python} -I -S {answer} {answers} "${{0##*/}}" "$@"
"""
ANSWER = """
import json, re, sys
from pathlib import Path
answers, line = Path(sys.argv[1]), ' '.join(sys.argv[2:])
left = json.loads(answers.read_text())
for place, (pattern, output, code) in enumerate(left):
    if re.search(pattern, line, re.DOTALL):
        del left[place]
        answers.write_text(json.dumps(left) if left else '')
        print(output, file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""


class FakePrograms:
    """Programs in a folder of their own, which come first on PATH.

    Args:
        folder: an empty one.
        names: of the programs.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        self._called, self._answers = folder / 'called', folder / 'answers.json'
        self.programs = folder / 'programs'
        self.programs.mkdir()
        self._called.write_text('')
        self.answer()
        answer = folder / 'answer.py'
        answer.write_text(ANSWER)
        paths = {'called': self._called, 'answers': self._answers, 'answer': answer}
        quoted = {name: shlex.quote(os.fspath(path)) for name, path in paths.items()}
        text = FAKE.format(python=shlex.quote(sys.executable), **quoted)
        for name in names:
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)

    def answer(self, *answers: tuple[str, str, int]) -> None:
        """Set what calls print and end with: (pattern of the call, output, exit code).

        Each answer is used once, in this order; a call without one prints nothing and ends with 0.
        """
        self._answers.write_text(json.dumps(answers) if answers else '')

    def calls(self) -> list[list[str]]:
        """How the programs were called, oldest first."""
        lines = self._called.read_text().split('\0\n\0')[:-1]
        return [line.split('\0') for line in lines]

    def environment(self, **settings: str) -> Mapping[str, str]:
        """The variables of a script that finds the programs, with the settings alone."""
        kept = {name: os.environ[name] for name in ('HOME', 'PATH', 'LANG') if name in os.environ}
        path = f'{self.programs}{os.pathsep}{kept["PATH"]}'
        return kept | {'PATH': path} | settings
