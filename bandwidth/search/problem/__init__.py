"""What is searched: decisions, costs and budgets, behind one interface."""
