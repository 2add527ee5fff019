"""What people run. Each job parses its arguments, starts or joins Ray, calls `pipeline`, and prints."""
