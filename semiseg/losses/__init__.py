"""Losses: pure functions, the papers' equations."""

from semiseg.losses.bootstrapped import bootstrapped_cross_entropy
from semiseg.losses.class_memory import class_memory_loss
from semiseg.losses.consistency import consistency_loss
from semiseg.losses.cross_consistency import cross_consistency_loss
from semiseg.losses.directional import directional_contrastive_loss
from semiseg.losses.entropy import entropy_loss, pixel_entropy
from semiseg.losses.hard_examples import hard_cross_entropy
from semiseg.losses.pseudo_labels import confident_cross_entropy
from semiseg.losses.self_supervised import (
    info_nce_loss,
    negative_cosine_loss,
    nt_xent_loss,
    pixel_consistency_loss,
)
from semiseg.losses.supervised import cross_entropy
from semiseg.losses.supervised_contrast import supervised_contrastive_loss
from semiseg.losses.unreliable import anchor_contrastive_loss, reliable_cross_entropy

__all__ = [
    "anchor_contrastive_loss",
    "bootstrapped_cross_entropy",
    "class_memory_loss",
    "confident_cross_entropy",
    "consistency_loss",
    "cross_consistency_loss",
    "cross_entropy",
    "directional_contrastive_loss",
    "entropy_loss",
    "hard_cross_entropy",
    "info_nce_loss",
    "negative_cosine_loss",
    "nt_xent_loss",
    "pixel_consistency_loss",
    "pixel_entropy",
    "reliable_cross_entropy",
    "supervised_contrastive_loss",
]
