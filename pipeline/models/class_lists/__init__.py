"""A network whose classes aren't those of the data: mapped by name, evaluated, and trained on."""
