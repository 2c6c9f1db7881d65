"""The report: numbers with confidence intervals, tables, examples, and the page that stands alone."""
