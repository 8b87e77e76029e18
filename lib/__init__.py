"""Ascent–descent unlearning: when a model forgets, and when it resists.

The house has eight wings; take names from their doors, `from lib.stability import …`:

- `stability`: exact theory of the linearised update on per-sample curvature.
- `random_matrix`: what curvature, coherence and frontiers must be before any training.
- `cnn`: the signal-plus-noise network, trained exactly in coefficient space.
- `unlearning`: the real update on any torch model, held against its prediction.
- `experiments`: what the chapters measure: Hessian tests, heat maps, resistance, overfitting.
- `store`: results that explain themselves.
- `sweep`: notebooks run over parameters, from one cell to a cluster.
- `book`: what the pages share: figures, claims, stored results.

Imports point one way: book → experiments → cnn | unlearning → random_matrix → stability → `checks`,
`randomness`. `store` imports none of the science, `sweep` imports `store` only.

>>> from lib.stability import AscentDescent, critical_learning_rate, grouped_family
>>> curvature = grouped_family(8, 4, 2, 2, retain_sharpness=1.0, forget_sharpness=1.0)
>>> algorithm = AscentDescent(mixing=0.1, retain_batch=4, forget_batch=2)
>>> round(critical_learning_rate(curvature, algorithm), 3)  # above it E‖δ‖² diverges
1.481
"""
