"""From a trained model to a folder on the Hub."""

from .classifier_card import write_classifier_card
from .conversion_card import write_conversion_card
from .export import csv_table, evaluation_processor, export_run, save_published, write_atomically, write_results
from .model_card import CardResult, ModelCardInfo, render_card
from .report import (
    add_to_card,
    evaluation_results,
    record_evaluations,
    report,
    report_table,
    results_of_model,
    write_report,
)
from .run_card import write_run_card


__all__ = [
    "CardResult",
    "ModelCardInfo",
    "add_to_card",
    "csv_table",
    "evaluation_processor",
    "evaluation_results",
    "export_run",
    "record_evaluations",
    "render_card",
    "report",
    "report_table",
    "results_of_model",
    "save_published",
    "write_atomically",
    "write_classifier_card",
    "write_conversion_card",
    "write_report",
    "write_results",
    "write_run_card",
]
