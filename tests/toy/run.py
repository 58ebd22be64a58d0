"""`python -m placerec_jax.train` with the toy method and its evaluator among the installed ones."""

from pathlib import Path

from placerec_jax import evaluation, methods, train

PLUGINS = str(Path(__file__).parent / "plugins")
methods.__path__.append(PLUGINS)
evaluation.__path__.append(PLUGINS)

if __name__ == "__main__":
    train.main()
