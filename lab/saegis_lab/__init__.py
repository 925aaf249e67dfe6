"""The lab: SAEs and labels for any model, edits measured, the reference model made, throughput."""
