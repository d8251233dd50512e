"""What a person looks at: the page of a query, and a figure of several."""
