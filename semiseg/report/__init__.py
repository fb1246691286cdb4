"""Records -> tables, figures and one page. Only throughput, which trains, imports torch."""
