"""What a step decides on its device, and how the host reads it steps later without a wait.

Steps run on a GPU while the host launches those that follow. A host that asks for a value waits until the GPU has
caught up, and the GPU is idle until the host has launched more. So nothing between two reports asks.
"""
