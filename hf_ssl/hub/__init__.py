"""From a trained model to a folder on the Hub."""

from .checkpoint_file import CheckpointFile, find_checkpoint
from .classifier_card import write_classifier_card
from .conversion_card import is_classifier, write_conversion_card
from .export import (
    clear_earlier_model,
    csv_table,
    evaluation_processor,
    export_run,
    save_published,
    write_atomically,
    write_results,
)
from .model_card import CardResult, ModelCardInfo, render_card
from .onnx_export import OnnxFile, export_onnx, require_onnx
from .push import PushReport, open_repository, push_folder
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
from .whole_folder import whole_folder


__all__ = [
    "CardResult",
    "CheckpointFile",
    "ModelCardInfo",
    "OnnxFile",
    "PushReport",
    "add_to_card",
    "clear_earlier_model",
    "csv_table",
    "evaluation_processor",
    "evaluation_results",
    "export_onnx",
    "export_run",
    "find_checkpoint",
    "is_classifier",
    "open_repository",
    "push_folder",
    "record_evaluations",
    "render_card",
    "report",
    "report_table",
    "require_onnx",
    "results_of_model",
    "save_published",
    "whole_folder",
    "write_atomically",
    "write_classifier_card",
    "write_conversion_card",
    "write_report",
    "write_results",
    "write_run_card",
]
