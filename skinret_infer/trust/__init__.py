"""What must not be believed or lost: signatures, the audit log, the graphs of a stranger."""
