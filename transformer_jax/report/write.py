"""The files of a report, written into one folder."""

from etils import epath

from transformer_jax.report import figures
from transformer_jax.report.analysis import analyze
from transformer_jax.report.csv_tables import runs_csv, summary_csv, tries_csv
from transformer_jax.report.html_page import html_report
from transformer_jax.report.latex import latex_report
from transformer_jax.report.markdown import markdown_report
from transformer_jax.report.tuning_figures import write_tuning_figures
from transformer_jax.storage.files import make_directory, write_text

OUT = '--out'


def write_report(path: epath.PathLike, out: epath.PathLike) -> list[epath.Path]:
    """Write report.md, report.html, tables.tex, runs.csv, summary.csv, tries.csv and the figures.

    Args:
        path: the root of an ablation, or a results.json.
        out: the folder to write.

    Returns:
        the paths of the files.

    Raises:
        ConfigError: `path` is neither.
        WorkdirError: the results are damaged, or `out` cannot be written.
    """
    report, out = analyze(path), epath.Path(out)
    make_directory(out, OUT)
    drawn = figures.write_figures(report, out) | write_tuning_figures(report, out)
    files = {
        'report.md': markdown_report(report, drawn),
        'report.html': html_report(report),
        'tables.tex': latex_report(report),
        'runs.csv': runs_csv(report),
        'summary.csv': summary_csv(report),
    }
    if report.experiment.get('tune'):
        files['tries.csv'] = tries_csv(report)
    for name, content in files.items():
        write_text(out / name, content, OUT)
    return [out / name for name in (*files, *drawn)]
