"""Fine-tuning: an encoder learns to classify images."""

from .configuration_classification import ClassificationConfig
from .modeling_classification import ClassifierForTraining
from .views_classification import ClassificationViews, ClassificationViewsConfig


__all__ = ["ClassificationConfig", "ClassificationViews", "ClassificationViewsConfig", "ClassifierForTraining"]
