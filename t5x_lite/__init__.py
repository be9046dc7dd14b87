"""T5 in JAX: `t5x_lite.load("runs/qa").answer("What is the capital of Japan?")`."""


def load(model_dir: str, step: int | None = None):
    """A trained model, ready to answer: see `t5x_lite.decoding.engine.Engine.load`."""
    from t5x_lite.decoding.engine import Engine  # a `import t5x_lite` alone must not wait for JAX

    return Engine.load(model_dir, step)
