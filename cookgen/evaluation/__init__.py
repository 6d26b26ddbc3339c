"""How good what was made is: scores as pure functions, and the commands that print them."""
