"""Stand-ins of servers on loopback, and a proxy that spoils requests."""
