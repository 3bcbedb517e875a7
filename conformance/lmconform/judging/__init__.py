"""When two numbers agree: error budgets from simulated legal arithmetic, and verdicts."""
