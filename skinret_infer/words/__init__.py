"""The words of a query: a checklist as data, its vocabulary in several languages, and the reader of free text."""
