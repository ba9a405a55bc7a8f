"""Reports of ablations: Markdown, HTML, LaTeX, CSV and figures, and the pages of this project."""
