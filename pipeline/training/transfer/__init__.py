"""Pretrained networks on few images: a last layer that is fitted to features which are computed once."""
