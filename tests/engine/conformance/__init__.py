"""What every engine must do: the suite that holds an engine to the protocol of engine/api.py."""
