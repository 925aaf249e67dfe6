"""Pictures that come from outside: bounded before they are decoded, and decoded where nothing else is."""
