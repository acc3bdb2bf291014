"""What pictures show, without how it is drawn: the states, shares and values of their cells."""
