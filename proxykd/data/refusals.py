"""Is a text a refusal: by how it opens, and in the eyes of a small classifier where there is one.

The patterns are quick, English and precise: they look at the opening alone, so that a story in which somebody
apologises is no refusal. A classifier finds what no pattern does (other languages, polite evasions); it is any
text-classification model in a folder, and it sees the same opening.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from proxykd.exceptions import ModelError

_SORRY = r"(?:(?:i'm|i am) )?(?:(?:very|really|so|truly) )?sorry|my apologies|i apologi[sz]e"
_CANNOT = r"i (?:can ?not|can't|won't|will not)(?: and (?:won't|will not))?|i(?:'m| am) (?:not able|unable) to"
_COMPLY = (
    "accommodate|answer|assist|complete|comply|continue|create|discuss|do that|engage|fulfil|generate|give|help|offer"
    "|participate|process|produce|provide|respond|satisfy|share|support|write"
)
REFUSAL_OPENINGS = (
    rf"(?:{_SORRY})[,.;]? (?:but )?(?:unfortunately,? )?(?:{_CANNOT})",
    rf"(?:unfortunately,? )?(?:{_CANNOT}) (?:{_COMPLY})",
    rf"(?:(?:{_SORRY})[,.;]? (?:but )?)?as an ai(?: language)?(?: model| assistant)?,? i\b",
    r"i (?:must|have to) (?:respectfully |politely )?decline",
)
"""Openings of texts that answer nothing, as regular expressions on lower-case text with straight apostrophes."""

_REFUSAL = re.compile("|".join(f"(?:{opening})" for opening in REFUSAL_OPENINGS))
_OPENING_CHARS = 200
_CLASSIFIED_CHARS = 1000


def is_refusal(text: str) -> bool:
    """Whether ``text`` opens as refusals do; what stands later in the text does not matter.

    Example:
        >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal("He said: I'm sorry, I can't.")
        (True, False)
    """
    opening = text[:_OPENING_CHARS].lower().replace("\u2019", "'")
    return bool(_REFUSAL.match(" ".join(opening.split()).lstrip("*_#>\"'“ ")))


class RefusalClassifier(Protocol):
    """Says which texts are refusals."""

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """For each text why it is a refusal, or "" if it is none; in the order of ``texts``."""


def find_by_pattern(texts: Sequence[str]) -> list[str]:
    """The ``RefusalClassifier`` that needs no model: ``is_refusal``, quoting the opening."""
    return [f"opens with {text.strip()[:60]!r}" if is_refusal(text) else "" for text in texts]


class ModelRefusals:
    """The ``RefusalClassifier`` of a text-classification model.

    Args:
        folder: A model and its tokenizer, as transformers save them; safetensors only.
        label: The label that means refusal.
        batch_size: Texts classified at once.

    Raises:
        ModelError: if the folder holds no such model, or the model has no such label.
    """

    def __init__(self, folder: Path, *, label: str, batch_size: int = 32) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if not folder.is_dir():
            raise ModelError(f"expected a model folder for validation.refusal_model, found none at {folder}")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            ).eval()
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(
                f"expected a text-classification model in {folder} for validation.refusal_model: {error}"
            ) from error
        ids = {name: idx for idx, name in self._model.config.id2label.items()}
        if label not in ids:
            raise ModelError(
                f"expected the label {label!r} in the model of {folder}, found {sorted(ids)}; set "
                "validation.refusal_label to the one that means refusal"
            )
        self._label, self._label_idx, self._batch_size = label, ids[label], batch_size

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """For each text the label and its probability where that label is the likeliest, else ""."""
        reasons: list[str] = []
        for start in range(0, len(texts), self._batch_size):
            reasons += self._classify([text[:_CLASSIFIED_CHARS] for text in texts[start : start + self._batch_size]])
        return reasons

    def _classify(self, texts: list[str]) -> list[str]:
        import torch

        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            probs = self._model(**inputs).logits.float().softmax(-1)
        is_refused = (probs.argmax(-1) == self._label_idx).tolist()
        return [
            f"the classifier says {self._label} with probability {prob:.2f}" if refused else ""
            for refused, prob in zip(is_refused, probs[:, self._label_idx].tolist(), strict=True)
        ]
