"""The process of one tracker: `python -m transformer_jax.trackers NAME RUN`.

It reads lines of JSON, each a method of `Tracker` and its arguments, until its input ends.
"""

import sys

from transformer_jax.storage.json_files import parse_json
from transformer_jax.trackers.kinds import RunName, finite, open_tracker


def main() -> None:
    """Pass all that comes to the tracker; an error ends the process, with a traceback."""
    name, run = sys.argv[1:]
    tracker = open_tracker(name, RunName(*parse_json(run, 'RUN', [str], 'start a run')))
    for line in sys.stdin.buffer:
        match parse_json(line, 'a line', [object], 'end the run'):
            case ['log', step, values]:
                tracker.log(step, finite(values))
            case ['log_config', config]:
                tracker.log_config(config)
            case ['log_artifact', path]:
                tracker.log_artifact(path)
    tracker.finish()


if __name__ == '__main__':
    main()
