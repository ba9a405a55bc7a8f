"""Write docs/tutorials/notebook.md and its pictures from the notebook: `make docs` runs this.

After a change to the cells of the notebook run `python docs/generate_notebook.py --execute`, which
runs them first and stores what they print. That needs the packages of the extra `dev`.
"""

import base64
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / 'tutorials'
NOTEBOOK = FOLDER / 'notebook.ipynb'
NOTE = (
    '<!-- Generated from notebook.ipynb by `make docs`: do not edit. -->\n\n'
    'This page is the notebook [notebook.ipynb](notebook.ipynb) as it was last run.\n\n'
)


def main() -> None:
    """Write the page and its pictures; with --execute also the notebook."""
    if '--execute' in sys.argv[1:]:
        NOTEBOOK.write_text(json.dumps(executed(), indent=1, ensure_ascii=False) + '\n')
    for old in FOLDER.glob(f'{NOTEBOOK.stem}-*.png'):
        old.unlink()
    for path, content in files().items():
        path.write_bytes(content)


def executed() -> dict[str, Any]:
    """Run all cells in a folder of their own and return the notebook with their outputs.

    Raises:
        CellExecutionError: a cell fails.
    """
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=1800,  # seconds for a cell
            kernel_name='python3',
            record_timing=False,
            coalesce_streams=True,  # lines that a cell prints become one output
            resources={'metadata': {'path': folder}},
        )
        client.execute()
    # The version of Python would change with every machine that runs it.
    notebook.metadata.language_info.pop('version', None)
    return notebook


def files() -> dict[Path, bytes]:
    """Map the page and every picture of the notebook to its content."""
    found: dict[Path, bytes] = {}
    parts: list[str] = []
    for cell in json.loads(NOTEBOOK.read_text())['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(f'{source}\n\n')
            if len(parts) == 1:
                parts.append(NOTE)
            continue
        parts.append(f'```python\n{source}\n```\n\n')
        for output in cell['outputs']:
            picture = _data(output, 'image/png')
            if picture:
                path = FOLDER / f'{NOTEBOOK.stem}-{len(found) + 1}.png'
                found[path] = base64.b64decode(picture)
                parts.append(f'![The picture that the code above shows]({path.name})\n\n')
            else:
                parts += _texts(output)
    return found | {NOTEBOOK.with_suffix('.md'): ''.join(parts).rstrip().encode() + b'\n'}


def _texts(output: dict[str, Any]) -> Iterator[str]:
    """Yield an output as Markdown: a table as HTML, all else as a block of text."""
    table = _data(output, 'text/html')
    text = _data(output, 'text/plain') or ''.join(output.get('text', ()))
    if table:
        yield f'{table}\n\n'
    elif text:
        yield f'```text\n{text.rstrip()}\n```\n\n'


def _data(output: dict[str, Any], kind: str) -> str:
    """Return the form of an output that has a MIME type; '' where it has none."""
    return ''.join(output.get('data', {}).get(kind, ()))


if __name__ == '__main__':
    main()
