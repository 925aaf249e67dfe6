"""Which policies are in force, how they change, and how they survive a restart."""
