"""PW-Self: DINO's loss on the class token and on all patches that two crops have in common."""

from .configuration_pw_self import PWSelfConfig
from .modeling_pw_self import PWSelfForPreTraining, PWSelfOutput
from .views_pw_self import PWSelfViews, PWSelfViewsConfig, match_views


__all__ = [
    "PWSelfConfig",
    "PWSelfForPreTraining",
    "PWSelfOutput",
    "PWSelfViews",
    "PWSelfViewsConfig",
    "match_views",
]
