"""One self-contained HTML page of a run, of results or of an evaluation: tables, pictures, nothing fetched from elsewhere."""

from .page import write_report

__all__ = ["write_report"]
