"""The mixture `instruct`: question answering, yes/no classification (qa.py) and translation; one model does all.

Half of the examples are from `qa`, half from `translation`, each mixed as it is alone.
"""

from t5x_lite.data.registry import register_mixture
from tasks import qa, translation  # noqa: F401 (they register what is mixed)

register_mixture("instruct", ["qa", "translation"], rates="equal")
