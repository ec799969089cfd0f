"""Networks by config: timm's backbones behind OpenOOD's protocol, generative models, and the loop that runs them."""
