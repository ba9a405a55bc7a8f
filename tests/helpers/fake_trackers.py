"""Trackers that do what those of others do at their worst; each runs in a process of its own."""

import json
import os
import time
from pathlib import Path


class Kept:
    """A tracker that writes all that it hears into `heard.jsonl` of its folder."""

    def __init__(self, run):
        self.path = Path(run.directory) / 'heard.jsonl'
        self._write('run', run.run_id, run.name)

    def _write(self, *heard):
        with self.path.open('a') as file:
            file.write(json.dumps(heard) + '\n')

    def log_config(self, config):
        self._write('log_config', config)

    def log(self, step, values):
        self._write('log', step, values)

    def log_artifact(self, path):
        self._write('log_artifact', path)

    def finish(self):
        self._write('finish')


class Slow(Kept):
    """It takes its time, but arrives."""

    def log(self, step, values):
        time.sleep(0.05)
        super().log(step, values)


class CannotStart(Kept):
    def __init__(self, run):
        raise ConnectionError('no route to host')


class FullDisk(Kept):
    def log(self, step, values):
        raise OSError(28, 'No space left on device')


class Dies(Kept):
    def log(self, step, values):
        os._exit(7)


class Hangs(Kept):
    """A network that neither answers nor fails."""

    def log(self, step, values):
        time.sleep(3600)


class HangsAtTheEnd(Kept):
    def finish(self):
        time.sleep(3600)
