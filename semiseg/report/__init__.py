"""Records -> tables, figures and one page. Nothing in here imports torch."""
