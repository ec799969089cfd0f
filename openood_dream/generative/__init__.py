"""Generative models of images and the OOD scores of their likelihoods: FRL (Cai & Li, WACV 2023) and its rivals.

A model of integers 0 to 255 (B, C, S, S) has `bound(x)`, what training raises, and `log_prob(x, noise)`, what scoring
uses, both in nats (B,), `draw_noise(generator)` for the latter, and `sample(count)` (uint8).
"""
