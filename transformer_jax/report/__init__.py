"""What an ablation found: report.md, report.html, figures, CSV, LaTeX, and the tables of
README files.
"""
