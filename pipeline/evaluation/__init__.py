"""A trained model is judged: predictions, metrics, certificates, explanations, robustness, pages.

A model and a data set come in. Predictions of each image and what follows from them go out, certified by a hash. The
door is `__all__`.
"""
