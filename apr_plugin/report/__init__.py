"""What is made of results: tables, cards, figures from papers."""
