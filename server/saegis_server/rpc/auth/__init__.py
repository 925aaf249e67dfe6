"""Who calls, and what their roles and the operator's policies allow."""
