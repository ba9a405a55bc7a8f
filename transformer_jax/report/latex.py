"""tables.tex: the tables of a report in the manner of booktabs."""

from transformer_jax.report.columns import cell, table_columns
from transformer_jax.report.tables import Report, Table
from transformer_jax.report.tuning import tuning_notes

# Letter -> what TeX needs for it.
LETTERS = {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '<': r'\textless{}',
    '>': r'\textgreater{}',
    '|': r'\textbar{}',
    '"': r'\textquotedbl{}',
    **{letter: f'\\{letter}' for letter in '&%$#_{}'},
    # pdflatex does not take these as they are.
    '−': '$-$',
    '–': '--',
    '±': r'$\pm$',
    '≈': r'$\approx$',
    '√': r'$\surd$',
    '×': r'$\times$',
    '≤': r'$\le$',
    '≥': r'$\ge$',
    '→': r'$\to$',
    'τ': r'$\tau$',
    '²': '$^2$',
    '·': r'$\cdot$',
    '…': r'\dots{}',
    '∞': r'$\infty$',
}
COLUMNS = (
    *('variant', 'n', 'mean', 'validation', 'difference', 'p', 'verdict', 'paper'),
    *('params', 'step'),
)


def latex_report(report: Report) -> str:
    """Write a tabular for each metric; comments say how the variants were tuned."""
    notes = ''.join(f'% {latex_escape(note)}\n' for note in tuning_notes(report.experiment))
    return notes + '\n'.join(_tabular(table) for table in report.tables)


def _tabular(table: Table) -> str:
    columns = [column for column in table_columns(table) if column.key.partition(' ')[0] in COLUMNS]
    layout = ''.join('l' if column.text else 'r' for column in columns)
    rows = [[latex_escape(column.title) for column in columns]]
    for row in table.rows:
        cells = [cell(table, row, column) for column in columns]
        rows.append([latex_escape(' '.join([found.text, *found.intervals])) for found in cells])
    lines = [' & '.join(cells) + r' \\' for cells in rows]
    body = '\n'.join(
        f'  {line}' for line in [r'\toprule', lines[0], r'\midrule', *lines[1:], r'\bottomrule']
    )
    return (
        f'% {latex_escape(table.label)}; wants \\usepackage{{booktabs}}\n'
        f'\\begin{{tabular}}{{{layout}}}\n{body}\n\\end{{tabular}}\n'
    )


def latex_escape(text: str) -> str:
    """Escape text so that TeX sets it as it is.

    Also after the end of a row, where TeX would take a bracket or a star for an argument.
    """
    text = ' '.join(text.split())  # an empty line would end a cell
    guard = '{}' if text.startswith(('[', '*')) else ''
    return guard + ''.join(LETTERS.get(letter, letter) for letter in text)
