"""What the processes of a node share: computed by one of them, kept in a file, mapped by all."""
