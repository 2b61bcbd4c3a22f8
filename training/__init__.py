"""Models, data, quantizers, pruners, objectives, loops and recipes: how the members of an ensemble come about."""
