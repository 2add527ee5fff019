"""What the device computes with: settings of torch for the whole process, and the precision of a forward pass."""
