"""Writes a report: all of its files in one folder."""

from etils import epath

from transformer_jax.report import figures, text
from transformer_jax.report.analysis import analyze
from transformer_jax.report.page import page
from transformer_jax.storage.files import wrap_os_errors, write_text


def write_report(path: epath.PathLike, out: epath.PathLike) -> list[epath.Path]:
    """Writes report.md, report.html, tables.tex, runs.csv, summary.csv and the figures; returns
    their paths.

    Args:
        path: the root of an ablation, or a results.json.
        out: the folder to write.

    Raises:
        ConfigError: `path` is neither.
        WorkdirError: the results are damaged, or `out` cannot be written.
    """
    report, out = analyze(path), epath.Path(out)
    with wrap_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        drawn = figures.draw(report, out)
        files = {
            'report.md': text.markdown(report, drawn),
            'report.html': page(report),
            'tables.tex': text.latex(report),
            'runs.csv': text.runs_csv(report),
            'summary.csv': text.summary_csv(report),
        }
        for name, content in files.items():
            write_text(out / name, content)
    return [out / name for name in (*files, *drawn)]
