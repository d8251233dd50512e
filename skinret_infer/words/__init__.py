"""The words of a query: a checklist as data, its vocabulary in several languages, a reader of free text."""
