"""What the authors of a method report about their own models."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReportedResults:
    """
    The numbers that the authors of a method report for models that they trained, as a table.

    A model card quotes them apart from the numbers that were measured with hf_ssl.

    Args:
        columns (`tuple[str, ...]`):
            Headers: that of the setting, then the metrics with their units, such as
            `("data, encoder", "kNN top-1 (%)", "linear top-1 (%)")`.
        rows (`tuple[tuple[str, ...], ...]`):
            Cells as the source prints them, one for each column; `"–"` where it has none.
        source (`str`):
            Where the numbers stand, as a phrase in Markdown without a full stop.
        note (`str`, *optional*):
            What a reader has to know about the numbers, in Markdown: where sources disagree, …
        weights_license (`str`):
            License identifier of the Hub for the authors' own weights.

    Raises:
        `ValueError`: a row is not as long as the headers.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str
    note: str | None = None
    weights_license: str

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"The row {row} has {len(row)} cells for {len(self.columns)} columns, {self.columns}."
                )


__all__ = ["ReportedResults"]
