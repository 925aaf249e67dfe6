"""Who calls, and what they and the operator's policies let them do."""
