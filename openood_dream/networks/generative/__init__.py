"""Generative models of images, whose likelihood tells ID from OOD images: VAE, GLOW and PixelCNN++."""
